"""Params gathered and addends reduced in two turns, inside blocks of devices and over them: as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.ops.row_shards import RowShards
from rlhf_jax.planner.compiled.collectives import collectives

SPECS = [P("fsdp"), P(None, "fsdp"), P("tensor", "fsdp"), P("fsdp", "tensor"), P()]
SHAPES = [(1, 8, 1), (2, 4, 1), (1, 4, 2)]


def shards_of(shape, blocks):
    return RowShards(tiny.make_mesh(shape), ("data", "fsdp"), (("fsdp", blocks),) if blocks else ())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sums_and_whole_params_of_blocks(shape, spec):
    """Of whole numbers, whose sums do not depend on the order."""
    once, turns = shards_of(shape, 0), shards_of(shape, 2)
    addends = jnp.asarray(
        np.random.default_rng(0).integers(-9, 9, (once.count, 16, 8)), jnp.float32
    )
    for shards in (once, turns):
        total = jax.jit(lambda addends, shards=shards: shards.reduced(addends, spec))(addends)
        np.testing.assert_array_equal(total, addends.sum(0))
        assert total.sharding.is_equivalent_to(NamedSharding(shards.mesh, spec), 2)
    param = jax.device_put(addends[0], NamedSharding(turns.mesh, spec))
    whole, back = jax.jit(
        jax.value_and_grad(
            lambda param: (turns.gathered(param, spec) * addends[1 % once.count]).sum()
        )
    )(param)
    assert whole == (addends[0] * addends[1 % once.count]).sum()
    np.testing.assert_array_equal(back, addends[1 % once.count])


def test_each_turn_is_of_its_own_devices_and_the_bytes_are_those_of_one_ring():
    shards = shards_of((1, 8, 1), 2)
    addends = jax.ShapeDtypeStruct(
        (8, 16, 8), jnp.float32, sharding=NamedSharding(shards.mesh, P("fsdp"))
    )
    param = jax.ShapeDtypeStruct(
        (16, 8), jnp.float32, sharding=NamedSharding(shards.mesh, P("fsdp"))
    )
    reduce = jax.jit(lambda addends: shards.reduced(addends, P("fsdp"))).lower(addends)
    gather = jax.jit(lambda param: shards.gathered(param, P("fsdp"))).lower(param)
    for lowered, kind in ((reduce, "reduce-scatter"), (gather, "all-gather")):
        found = collectives(lowered.compile().as_text() or "", 8)
        assert {each.kind for each in found} == {kind}
        inside, between = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]
        assert sorted(map(list, found[0].groups)) == (
            between if kind == "reduce-scatter" else inside
        )
        assert sum(each.link_bytes for each in found) == 7 / 8 * 16 * 8 * 4
