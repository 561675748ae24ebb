"""A checkpoint of unrolled layers is read with its layers stacked, and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.models.common import forms, stacking
from rlhf_jax.records.checkpoints import Checkpoints, Damaged, restore_params
from rlhf_jax.updating import init_state

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
LAYERS = 5


def params() -> dict:
    """Five layers, and a head."""
    kernel = jnp.arange(32.0).reshape(8, 4)
    return {
        f"layer_{index}": {"k": {"kernel": kernel + 100 * index}} for index in range(LAYERS)
    } | {"head": {"kernel": -kernel}}


def states(period: int) -> dict:
    """A policy whose layers are stacked, and a critic whose layers never are."""
    policy = init_state(stacking.stack(params(), period), OPTIMIZER)
    mu = jax.tree.map(lambda x: x + 0.5, policy.params)
    adam = policy.opt_state[1][0]._replace(mu=mu)
    opt_state = (policy.opt_state[0], (adam, *policy.opt_state[1][1:]))
    critic = init_state({"layer_0": {"bias": jnp.ones(3)}}, OPTIMIZER)
    return {"policy": policy.replace(opt_state=opt_state), "critic": critic}


def sharded(tree: object, mesh: jax.sharding.Mesh) -> object:
    """Shapes of a tree, its kernels sharded by their last dimension but one."""

    def of(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        spec = P(*[None] * (leaf.ndim - 2), "fsdp") if leaf.ndim > 1 else P()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(of, tree)


def same(actual: object, expected: object, layout: object) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = map(jax.tree.leaves, (actual, expected, layout))
    for ours, theirs, wanted in zip(*leaves, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding.is_equivalent_to(wanted.sharding, ours.ndim)


@pytest.mark.parametrize("saved", [0, 1, 2], ids=["unrolled", "stacked", "pairs"])
@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["unrolled", "stacked", "pairs"])
def test_a_checkpoint_is_read_in_either_form(tmp_path, saved, wanted):
    mesh = jax.make_mesh((4,), ("fsdp",), devices=jax.devices()[:4])
    place = tmp_path / "checkpoints" / "rlhf"
    checkpoints = Checkpoints(place)
    checkpoints.save(3, states(saved))
    checkpoints.wait()
    expected = states(wanted)
    layout = sharded(expected, mesh)
    same(checkpoints.restore(3, layout), expected, layout)
    checkpoints.close()
    of_policy = layout["policy"].params
    part, step = restore_params(place, of_policy, "policy")
    assert step == 3
    same(part, expected["policy"].params, of_policy)


def test_each_array_is_held_twice_and_no_more(monkeypatch):
    """What a stacked array was made of is deleted before the next one is made."""
    tree = {"params": params() | {"layer_norm": jnp.ones(2)}}
    wanted = sharded(stacking.stack(tree, 1), jax.make_mesh((1,), ("fsdp",)))
    parts = [
        layer["k"]["kernel"]
        for name, layer in tree["params"].items()
        if "layer_" in name[:6] and name != "layer_norm"
    ]
    found = forms.read_as(wanted, forms.names(tree), lambda abstract: tree)
    assert all(part.is_deleted() for part in parts)
    assert not tree["params"]["head"]["kernel"].is_deleted()
    assert found["params"]["scanned_layers_0"]["k"]["kernel"].shape == (LAYERS, 8, 4)


def test_a_checkpoint_without_its_list_of_arrays_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "rlhf")
    checkpoints.save(3, states(0))
    checkpoints.wait()
    (checkpoints.directory / "3" / "default" / "_METADATA").write_text("{")
    with pytest.raises(Damaged, match="cannot be read"):
        checkpoints.restore(3, sharded(states(1), jax.make_mesh((1,), ("fsdp",))))
    checkpoints.close()
