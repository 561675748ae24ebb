"""Gradients of a bfloat16 model are float32, and an update on eight devices gathers and reduces each
param as often as it must.
"""

import re
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from rlhf_jax import updating
from rlhf_jax.devices import sharding
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.compiled.collectives import collectives
from rlhf_jax.stages import dpo, reward_model

ROWS = 32
SHAPE = {"width": 32, "num_heads": 8, "ffn_width": 64, "vocab_size": 128, "num_layers": 2}
WIDE = {"dtype": "bfloat16", "gradient_dtype": "float32"}
LORA = adapters.Config(rank=2)


def shapes_on(model, tree, mesh):
    """Params or parts of them as shapes with their shardings."""
    shardings = sharding.params_shardings(model, tree, mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


class Case(NamedTuple):
    """An update of a bfloat16 model of two layers."""

    family: str = "gpt_neox"
    shape: tuple[int, int, int] = (1, 8, 1)
    micro_batches: int = 2
    remat: bool = False
    scanned: bool = False
    rank: int = 0
    group: int = 2  # rows of a prompt, which is run once

    @property
    def model(self):
        changes = {"remat": self.remat, "scan_layers": 2 * self.scanned}
        return tiny.make_model(self.family, **changes, **WIDE, **SHAPE)

    @property
    def own_reductions(self) -> bool:
        """Each of the two passes of an objective reduces a layer by itself."""
        return self.group > 1 and (self.remat or self.scanned)


@lru_cache
def lowered(case: Case):
    """The update, and the params that it trains."""
    model, mesh = case.model, tiny.make_mesh(case.shape)
    optimizer = updating.make_optimizer(updating.OptimizerConfig(), num_updates=10)
    params = adapters.shapes(model, adapters.Config(rank=case.rank))
    trained, rest = adapters.split(params)
    state = jax.eval_shape(partial(updating.init_state, optimizer=optimizer), trained)
    shardings = sharding.state_shardings(model, state, optimizer, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    if rest is not None:
        rest = adapters.Base(shapes_on(model, rest.params, mesh), rest.scale)
    batch = sharding.abstract_rows(jax.eval_shape(lambda: tiny.make_batch(ROWS)), mesh)

    def loss(outputs, batch):
        return jnp.sum(outputs.logprob_RC * batch.mask_RC), {}

    step = partial(
        updating.train_step,
        objective=updating.policy_objective(loss, model, case.group),
        optimizer=optimizer,
        aggregation="token",
        unit_rows=case.group,
        num_micro_batches=case.micro_batches,
    )
    out = (shardings, sharding.replicated(mesh))
    run = jax.jit(sharding.keeping_rows(step, mesh), out_shardings=out)
    return run.lower(state, batch, {}, rest), trained


@lru_cache
def found(case: Case):
    return collectives(lowered(case)[0].compile().as_text(), 8)


def traced_types(operation: str, program) -> list[str]:
    """Types of the operands of a collective, such as 32x96xf32."""
    return re.findall(rf'{operation}".*?\) : \(tensor<(\S+?)>', program.as_text(), re.S)


def num_elements(params, *names: str) -> int:
    flat = flatten_dict(params)
    return sum(leaf.size for path, leaf in flat.items() if not names or path[-1] in names)


def num_reductions(params, case) -> int:
    """Matrices of a model, those of its layers once more with remat, for the pass over prompts."""
    matrices = [path for path, leaf in flatten_dict(params).items() if leaf.ndim > 1]
    return len(matrices) + case[3] * sum("layer_0" in path for path in matrices)


TWO_PARTS = ("gpt_neox", (1, 8, 1), 2, False, 0)
REMAT = ("llama", (2, 4, 1), 1, True, 0)
ADAPTED = ("llama", (1, 8, 1), 2, False, 2)
COMPILED = [TWO_PARTS, pytest.param(REMAT, marks=pytest.mark.slow)]


@pytest.mark.parametrize("case", [TWO_PARTS, REMAT])
def test_sums_of_gradients_over_devices_are_float32(case):
    """As traced, of every matrix: a CPU widens its own collectives."""
    program, params = lowered(*case)
    types = traced_types("stablehlo.reduce_scatter", program)
    assert len(types) == num_reductions(params, case)
    assert {shape.split("x")[-1] for shape in types} == {"f32"}


def budget(num_params: int, num_summed: int, micro_batches: int, data: int, fsdp: int) -> float:
    """Bytes that a device sends in an update of n micro-batches, each of which reduces S gradients:
    n (2 (f - 1) / f 2 P + (f - 1) / f 4 S + 2 (d - 1) / d 4 S / f).

    Params are gathered over fsdp as bfloat16 in the forward and in the backward pass, and float32
    gradients scattered over fsdp and summed over data.
    """
    over_fsdp, over_data = (fsdp - 1) / fsdp, (data - 1) / data
    gathered, summed = 2 * num_params, 4 * num_summed
    each = 2 * over_fsdp * gathered + over_fsdp * summed + 2 * over_data * summed / fsdp
    return micro_batches * each


@pytest.mark.parametrize("case", COMPILED)
def test_links_of_an_update_are_within_the_budget(case):
    """A CPU gathers as float32 what would be bfloat16."""
    _, (data, fsdp, _), micro_batches, remat, _ = case
    params, rows = lowered(*case)[1], found(*case)
    layers = {name: leaf for name, leaf in params.items() if name.startswith("layer_")}
    num_params = num_elements(params)
    num_summed = num_params + remat * num_elements(layers)
    assert {row.kind for row in rows} <= {"all-gather", "reduce-scatter", "all-reduce"}
    sent = sum(row.total_bytes / (2 if row.kind == "all-gather" else 1) for row in rows)
    expected = budget(num_params, num_summed, micro_batches, data, fsdp)
    assert 0.6 * expected < sent <= 1.3 * expected


@pytest.mark.parametrize("case", COMPILED)
def test_each_param_is_reduced_once_a_micro_batch(case):
    """In one reduce-scatter over fsdp for both passes of a model, prompts and completions, inside
    the loop over micro-batches. With remat each pass reduces a layer by itself.
    """
    _, (_, fsdp, _), micro_batches, _, _ = case
    params = lowered(*case)[1]
    sums = [row for row in found(*case) if row.kind == "reduce-scatter"]
    bytes_scattered = sum(row.operand_bytes * row.times for row in sums)
    assert len(sums) == num_reductions(params, case)
    layers = {name: leaf for name, leaf in params.items() if name.startswith("layer_")}
    whole, again = (num_elements(tree, "kernel", "embedding") for tree in (params, layers))
    assert bytes_scattered == micro_batches * 4 * (whole + again * case[3])
    assert {row.group_size for row in sums} == {fsdp}
    assert {row.depth for row in sums} == {int(micro_batches > 1)}


def test_params_are_gathered_in_the_turn_of_each_micro_batch():
    """Gathered before the loop, whole params would be there until it ends."""
    gathers = [row for row in found(*TWO_PARTS) if row.kind == "all-gather"]
    assert {(row.depth, row.times) for row in gathers} == {(1, 2)}


def test_of_an_adapted_model_gradients_of_the_adapter_alone_are_summed():
    """One float32 sum of each, as traced."""
    program, adapter = lowered(*ADAPTED)
    types = traced_types("stablehlo.all_reduce", program)
    assert sorted(types) == sorted(
        "x".join(map(str, (*leaf.shape, "f32"))) for leaf in jax.tree.leaves(adapter)
    )
    assert "reduce_scatter" not in program.as_text()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_frozen_kernel_has_no_product_for_a_gradient(rank):
    """A whole kernel in float32 is a gradient: what is multiplied is rounded to bfloat16."""
    program, _ = lowered(*ADAPTED[:-1], rank)
    products = re.findall(r"dot_general .*-> tensor<(\S+)>", program.as_text())
    gradient = f"{SHAPE['width']}x{SHAPE['ffn_width']}xf32"
    assert (gradient in products) == (rank == 0)


def objective_of(name: str, model):
    """An objective of our stages, its model, and rows that it takes."""
    value_model, batch = ValueModel(model), tiny.make_batch(ROWS)
    rows = (batch.prompt_tokens_RQ, batch.prompt_mask_RQ, batch.tokens_RC, batch.mask_RC)
    if name == "critic":
        objective = updating.critic_objective(
            lambda outputs, _: (outputs.value_RC.sum(), {}), value_model
        )
        return objective, value_model, batch
    if name == "reward_model":
        pairs = reward_model.Pairs(batch.tokens_RC, batch.mask_RC)
        return partial(reward_model.objective, value_model), value_model, pairs
    pairs = dpo.Pairs(*rows, batch.weight_R)
    return partial(dpo.objective, model, dpo.Config()), model, pairs


@pytest.mark.parametrize("name", ["critic", "reward_model", "dpo"])
def test_every_objective_reduces_what_it_reads_once(name):
    """As traced. A value model has no gradient of the backbone's head, and none of its own is cut."""
    model = tiny.make_model("llama", **WIDE, **SHAPE)
    mesh, (objective, trained, rows) = tiny.make_mesh((1, 8, 1)), objective_of(name, model)
    params = shapes_on(trained, jax.eval_shape(trained.init, jax.random.key(0)), mesh)
    gradient = sharding.keeping_rows(jax.grad(objective, has_aux=True), mesh)
    rows = sharding.abstract_rows(jax.eval_shape(lambda: rows), mesh)
    matrices = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(params))
    sums = traced_types("stablehlo.reduce_scatter", jax.jit(gradient).lower(params, rows))
    assert len(sums) == (matrices if name == "dpo" else matrices - 2)


@pytest.mark.parametrize(("shape", "rank"), [((1, 1, 1), 0), ((1, 8, 1), 2)])
def test_gradients_are_not_rounded(shape, rank):
    """No gradient of a trained param has numbers of bfloat16 alone, but where no token was."""
    model, mesh = tiny.make_model("llama", **WIDE, **SHAPE), tiny.make_mesh(shape)
    params = tiny.make_params(model)
    if rank:
        adapter = adapters.init(model, LORA, jax.random.key(0))
        adapter = jax.tree.map(lambda x: x + 0.1, adapter)  # B is 0: A would have no gradient
        params = adapters.Adapted(adapters.compact(params, "float32"), adapter, LORA.scale)
    params = jax.device_put(params, sharding.params_shardings(model, params, mesh))
    trained, rest = adapters.split(params)
    batch = tiny.make_batch(ROWS)
    batch = jax.device_put(batch, sharding.row_shardings(batch, mesh))
    objective = updating.policy_objective(lambda outputs, _: (outputs.logprob_RC.sum(), {}), model)

    def loss(trained, rest, batch):
        return objective(adapters.join(trained, rest), batch)[0]

    gradient = jax.jit(sharding.keeping_rows(jax.grad(loss), mesh))(trained, rest, batch)
    for path, leaf in flatten_dict(gradient).items():
        rounded = leaf.astype(jnp.bfloat16).astype(jnp.float32)
        assert leaf.dtype == jnp.float32
        assert np.mean((rounded == leaf)[np.abs(leaf) > 0]) < 0.1, path
