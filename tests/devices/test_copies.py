"""Gradients of copies of the params on two hosts: what an update sends between them, and that its
results are those of one copy. Eight devices of one process stand for two hosts of four.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import updating
from rlhf_jax.devices import mesh, sharding
from rlhf_jax.devices.copies import Copies, copies_of
from rlhf_jax.models.common import adapters
from rlhf_jax.planner.compiled.collectives import collectives, network_bytes
from rlhf_jax.types import EffectiveShare, Max, Mean
from tests.devices.test_mesh import blocks

ROWS, HOST = 32, 4
SHAPE = {"width": 32, "num_heads": 8, "ffn_width": 64, "vocab_size": 128, "num_layers": 2}
WIDE = {"dtype": "bfloat16", "gradient_dtype": "float32"}
LORA = adapters.Config(rank=2)


class Case(NamedTuple):
    """An update of a model on a mesh, with its gradients sent in `dtype` between hosts."""

    shape: tuple[int, int, int] = (2, 4, 1)
    dtype: str = "float32"
    micro_batches: int = 4
    changes: tuple[tuple[str, object], ...] = ()
    rank: int = 0
    apart: bool = True  # the update knows of the copies

    @property
    def model(self):
        return tiny.make_model("llama", network_gradient_dtype=self.dtype, **self.options)

    @property
    def options(self):
        return SHAPE | dict(self.changes)

    @property
    def mesh(self):
        return tiny.make_mesh(self.shape)


def loss(outputs, batch):
    """The sum of log-probabilities, and a metric of each kind."""
    weight_R = (outputs.logprob_RC * batch.mask_RC).sum(1)
    metrics = {
        "mean": Mean(weight_R.sum(), jnp.float32(len(weight_R))),
        "largest": Max(jnp.abs(outputs.logprob_RC).max()),
        "share": EffectiveShare(
            weight_R.sum(), jnp.square(weight_R).sum(), jnp.float32(len(weight_R))
        ),
    }
    return weight_R.sum(), metrics


def arguments(case: Case):
    """State, batch and the rest of params, on the mesh; and the shardings of the state."""
    model, where = case.model, case.mesh
    params = tiny.make_params(tiny.make_model("llama", **SHAPE))
    params = model.stacked(jax.tree.map(lambda x: 0.3 * x if x.ndim > 1 else x, params))
    if case.rank:
        adapter = jax.tree.map(
            lambda x: 0.1 * x + 0.002, adapters.init(model, LORA, jax.random.key(0))
        )
        params = adapters.Adapted(adapters.compact(params, model.dtype), adapter, LORA.scale)
    params = jax.device_put(params, sharding.params_shardings(model, params, where))
    trained, rest = adapters.split(params)
    state = updating.init_state(trained, OPTIMIZER)
    shardings = sharding.state_shardings(model, state, OPTIMIZER, where)
    batch = tiny.make_batch(ROWS)
    batch = jax.device_put(batch, sharding.row_shardings(batch, where))
    return jax.device_put(state, shardings), batch, rest, shardings


OPTIMIZER = updating.make_optimizer(updating.OptimizerConfig(), num_updates=10)


def step_of(case: Case):
    step = partial(
        updating.train_step,
        objective=updating.policy_objective(loss, case.model, 2),
        optimizer=OPTIMIZER,
        aggregation="token",
        unit_rows=2,
        num_micro_batches=case.micro_batches,
        over_copies=Copies(case.mesh, case.model, case.dtype) if case.apart else None,
    )
    return sharding.keeping_rows(step, case.mesh)


@lru_cache
def compiled(case: Case):
    """The update, compiled, and its arguments."""
    state, batch, rest, shardings = arguments(case)
    out = (shardings, sharding.replicated(case.mesh))
    run = jax.jit(step_of(case), out_shardings=out)
    return run.lower(state, batch, {}, rest).compile(), (state, batch, {}, rest)


def sent(case: Case) -> float:
    """Bytes that a device sends to the other host in one update."""
    return network_bytes(collectives(compiled(case)[0].as_text(), 8), np.arange(8) // HOST)


def formula(case: Case) -> float:
    """2 (n − 1)/n · W with n copies, and W bytes of the gradient that a device holds: of what fsdp
    and tensor cut, its part.
    """
    (state, *_), copies_of_params = compiled(case)[1], case.shape[0]
    item = 4 if case.dtype == "float32" else 2
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    return 2 * (copies_of_params - 1) / copies_of_params * held * item


FLOAT32, BFLOAT16 = Case(), Case(dtype="bfloat16")
CASES = {
    "float32": FLOAT32,
    "bfloat16": BFLOAT16,
    "one micro-batch": Case(micro_batches=1),
    "tensor": Case((2, 2, 2)),
    "whole params in a copy": Case((2, 1, 4), "bfloat16"),
    "four copies": Case((4, 2, 1), "bfloat16"),
    "float32 gradients": Case(changes=tuple(WIDE.items())),
    "remat and scan": Case(changes=(*WIDE.items(), ("remat", True), ("scan_layers", 2))),
    "adapter": Case(changes=tuple(WIDE.items()), rank=2),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@EACH
def test_gradients_cross_hosts_once_an_update(case):
    """Within 3 % of the formula: losses, counts and metrics cross, too, and bfloat16 pads arrays."""
    assert formula(case) <= sent(case) <= 1.03 * formula(case) + 200
    inside_of_loops = [row for row in collectives(compiled(case)[0].as_text(), 8) if row.depth]
    assert network_bytes(inside_of_loops, np.arange(8) // (HOST if case.shape[0] == 2 else 2)) == 0


def test_without_copies_the_compiler_sums_over_hosts_in_each_micro_batch():
    assert sent(Case(apart=False)) > 4 * formula(FLOAT32)


def gradient(case: Case):
    """Of an update, from Adam's first moment; and its metrics."""
    run, given = compiled(case)
    state, metrics = jax.device_get(run(*given))
    return jax.tree.leaves(state.opt_state[1][0].mu), metrics


def distance(found, expected) -> float:
    """Norm of the difference, by that of what is expected."""
    off = sum(np.sum((x - y) ** 2) for x, y in zip(found, expected, strict=True))
    return float(np.sqrt(off / sum(np.sum(y**2) for y in expected)))


@EACH
def test_an_update_is_that_of_one_device(case):
    """Gradients and metrics: to float32's rounding, or to that of bfloat16 where it is somewhere."""
    found, metrics = gradient(case)
    one = case._replace(shape=(1, 1, 1), dtype="float32", apart=False)
    expected, same_metrics = gradient(one)
    rounds = case.dtype == "bfloat16" or case.changes
    assert distance(found, expected) < (0.02 if case.changes else 0.004 if rounds else 1e-6)
    for name, metric in same_metrics.items():
        tolerance = 0.02 if rounds else 1e-5
        np.testing.assert_allclose(
            metrics[name].value(), metric.value(), rtol=tolerance, err_msg=name
        )


def test_bfloat16_rounds_what_is_sent_and_nothing_else():
    """Two roundings to 8 bits: off by at most 2 · 2⁻⁹ of the larger one, and by more than float32."""
    off = distance(gradient(BFLOAT16)[0], gradient(FLOAT32)[0])
    assert 1e-4 < off < 2 * 2**-8


def test_copies_are_those_of_several_hosts(monkeypatch):
    """Meshes of one process have none, and one copy on all hosts is none. Neither have devices of
    another machine's topology, which report several processes and count as one host.
    """
    model, hosts = BFLOAT16.model, blocks(4, 2)
    assert copies_of(model, mesh.over_hosts(blocks(2, 2), (1, 2, 1))) is None
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert copies_of(model, mesh.over_hosts(hosts, (1, 2, 1), 4)) is None
    for shape, hosts_of_a_copy in (((1, 2, 1), 1), ((1, 2, 1), 2), ((2, 1, 1), 1)):
        where = mesh.over_hosts(hosts, shape, hosts_of_a_copy)
        assert copies_of(model, where) == Copies(where, model, "bfloat16")
