"""The calls of the dataflow as compiled functions: scores without a gradient, updates with one,
each for its own mesh.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import jax
import optax
from jax.sharding import Mesh

from rlhf_jax.clock import choice
from rlhf_jax.dataflow import SCORES, Call
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.copies import copies_of
from rlhf_jax.devices.placement import put
from rlhf_jax.micro_batches import map_micro_batches
from rlhf_jax.ops.once import bound
from rlhf_jax.ops.policy_gradient.learning_rate_scale import scale_of, with_row_share
from rlhf_jax.ops.scalars import Scalars
from rlhf_jax.prompt_buckets import by_length, in_buckets
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Array, Batch, Metrics, Params, Samples, TrainState
from rlhf_jax.updating import (
    critic_objective,
    init_state,
    policy_objective,
    step_scalars,
    train_step,
)

T = TypeVar("T")
OBJECTIVES = {"policy": policy_objective, "critic": critic_objective}


@dataclass(frozen=True)
class CompiledCall(Generic[T]):
    """A call of the dataflow, compiled for its mesh.

    `function` is `(params, samples) -> rows` of a score, and `(state, batch, scalars) -> (state,
    metrics)` of an update, which donates the state. Rows are sharded over data and fsdp. `scalars`
    are the numbers of an update that are arguments of its program.
    """

    call: Call
    mesh: Mesh
    function: distributed.Compiled[T]
    scalars: Mapping[str, Scalars] = field(default_factory=dict)


def score(spec: ProgramSpec, call: Call) -> CompiledCall[Array]:
    """Compiles a score. A group's rows stay together, because its prompt is run once.

    Args:
      spec: of the program.
      call: a call of kind "infer".

    Raises Refusal where the run has no model of the call's role.
    """
    mesh, group = spec.resolved_plan.mesh(call.name), spec.sampling.samples_per_prompt
    num_micro_batches = spec.resolved_plan.micro_batches(call.name)
    function = bound(SCORES[call.name].function, model=spec.model_of(call))
    if spec.prompt_buckets > 1:
        function = in_buckets(function, spec.prompt_buckets)
    micro_batched = map_micro_batches(function, num_micro_batches, group, group)
    if spec.prompt_buckets > 1:
        row_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        micro_batched = by_length(micro_batched, num_micro_batches, group, row_shards)
    run = distributed.compiled(
        sharding.keeping_rows(micro_batched, mesh),
        name=call.name,
        out_shardings=sharding.rows(mesh),
    )
    return CompiledCall(call, mesh, run)


def update(
    spec: ProgramSpec, call: Call, state_shardings: TrainState
) -> CompiledCall[tuple[TrainState, Metrics]]:
    """Compiles one update of a role.

    Args:
      spec: of the program.
      call: a call of kind "train".
      state_shardings: of the role's state.
    """
    _, optimizer = spec.trained[call.role]
    mesh, algorithm = spec.resolved_plan.mesh(call.name), spec.algorithm
    loss, scale = algorithm.losses[call.role], None
    if call.role == "policy":
        scale = scale_of(spec.learning_rate_scale)
        loss = loss if scale is None else with_row_share(loss)
    objective = OBJECTIVES[call.role](loss, spec.model_of(call), spec.block_rows)
    step = bound(
        train_step,
        objective=objective,
        optimizer=optimizer,
        aggregation=algorithm.aggregation if call.role == "policy" else "token",
        unit_rows=spec.block_rows,
        num_micro_batches=spec.resolved_plan.micro_batches(call.name),
        scale=scale,
        over_copies=copies_of(spec.model_of(call), mesh),
    )
    shardings = (state_shardings, sharding.replicated(mesh))
    run = distributed.compiled(
        sharding.keeping_rows(step, mesh),
        name=call.name,
        donate_argnums=0,
        out_shardings=shardings,
    )
    return CompiledCall(call, mesh, run, step_scalars(objective, optimizer, scale))


def params_shardings(spec: ProgramSpec, call: Call, params: Params) -> Params:
    """Returns the shardings of a call's params on its mesh: replicated where the role has no
    network.

    Args:
      spec: of the program.
      call: whose mesh it is.
      params: arrays or their shapes.
    """
    network, mesh = spec.networks[call.role], spec.resolved_plan.mesh(call.name)
    if network is None:
        return jax.tree.map(lambda _: sharding.replicated(mesh), params)
    return sharding.params_shardings(network, params, mesh)


class StoredScores:
    """The stored scores that an algorithm needs, looked up for the samples of a round."""

    def __init__(self, spec: ProgramSpec, mesh: Mesh):
        """Puts the tables on a mesh.

        Args:
          spec: of the program; it may have shapes in the place of tables.
          mesh: where the samples are.
        """
        self.tables = {
            name: put(table, sharding.replicated(mesh)) for name, table in spec.stored.items()
        }
        self.rows = distributed.compiled(_stored_rows, out_shardings=sharding.rows(mesh))

    def __call__(self, samples: Samples) -> dict[str, Array]:
        """The scores of each sample's prompt, `[B, S]`, by their entry of `Scores.extra`; NaN for an
        ordinal that has none.

        Raises Refusal where the program has shapes in the place of tables.
        """
        found: dict[str, Array] = {}
        for name, table in self.tables.items():
            if isinstance(table, jax.ShapeDtypeStruct):
                raise Refusal(
                    f"the program has no {name}, only its shape; accepted: the stored scores of the "
                    "stage 'prompt_values' (ProgramSpec.reference_scores)"
                )
            found[name] = self.rows(table, samples.ordinal_B)
        return found


def _stored_rows(stored_TS: Array, ordinal_B: Array) -> Array:
    return stored_TS.at[ordinal_B].get(mode="fill", fill_value=jax.numpy.nan)


def fresh_state(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at version 0 whose params are copies."""
    return init_state(jax.tree.map(jax.numpy.copy, params), optimizer)


def take_units(batch: Batch, units_U: Array, *, unit_rows: int, mesh: Mesh) -> Batch:
    """The rows of the given units, in their order, sharded over the mesh; scalars unchanged.

    Args:
      batch: rows, units contiguous.
      units_U: indices of units, int32.
      unit_rows: rows of a unit.
      mesh: of the result.
    """

    def take(array: Array) -> Array:
        if array.ndim == 0:
            return array
        return array.reshape(-1, unit_rows, *array.shape[1:])[units_U].reshape(-1, *array.shape[1:])

    rows = jax.tree.map(take, batch)
    return jax.lax.with_sharding_constraint(rows, sharding.row_shardings(rows, mesh))


def gather_groups(rounds: Sequence[Samples], group_P: Array, *, mesh: Mesh) -> Samples:
    """`choice.gather`, sharded over a mesh."""
    samples = choice.gather(rounds, group_P)
    return jax.lax.with_sharding_constraint(samples, sharding.row_shardings(samples, mesh))
