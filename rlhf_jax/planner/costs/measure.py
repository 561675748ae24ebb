"""Times a call of the real model under its real shardings on the devices at hand: with one layer
and with two, so that a model of any depth is timed in the memory of two layers.

    T(N) = T(1) + (N − 1) (T(2) − T(1))          and so for bytes; a model of at most two layers is timed as it is

Arguments are zeros and no row ends before its last token: the time of a compiled program does not
depend on numbers. What a round does beside a call, once for the rows on their way (credit, the rows
of an update), counts as the policy's training.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.dataflow import TRAIN_CALLS
from rlhf_jax.devices.placement import OTHERS
from rlhf_jax.devices.transfer.reallocate import move
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.rounding import held
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.rewards import learned
from rlhf_jax.runtime.program import CREDIT, Program
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Params, Placement, Plan

Tree = TypeVar("Tree")
TreeAndShardings = tuple[object, object, object]
"""Shapes of arrays, and the shardings from which and to which they move: three trees alike."""
NO_TOKEN = -1
RUNS = 7  # interleaved; the least of them counts


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of one run of a call, and bytes of a device that it takes beside its arguments
    (outputs that take an argument's place are not counted).
    """

    seconds: float
    working_bytes: float


def depths(num_layers: int) -> tuple[int, ...]:
    """The numbers of layers to time."""
    return (num_layers,) if num_layers <= 2 else (1, 2)


def extrapolated(values: Sequence[float], num_layers: int) -> float:
    """T(N) of T at the depths of `depths`, and never less than the shallowest."""
    if len(values) == 1:
        return values[0]
    return max(values[0], values[0] + (num_layers - 1) * (values[1] - values[0]))


def with_depth(
    spec: ProgramSpec, num_layers: int, placement: Placement, **sampling: int
) -> tuple[ProgramSpec, Params]:
    """The spec with models of another depth, every call at one placement, and rows that never end.

    Args:
      spec: of a run.
      num_layers: of every model.
      placement: of every call.
      sampling: values of `sampling.Config` that differ.

    Returns: the spec, and params of zeros for its reference.
    """
    model = spec.model.with_config(num_layers=num_layers)
    reward, critic, lora_of_critic = spec.reward, spec.critic, spec.lora
    if reward.network is not None:
        network = reward.network.with_config(num_layers=num_layers)
        # A published reward model has no adapter.
        rest = None if reward.params is None else adapters.split(reward.params)[1]
        lora = adapters.Config() if rest is None else spec.lora
        lora_of_critic = spec.lora.on_published() if rest is None else spec.lora
        params = held(network, zeros(network, lora))
        reward = dataclasses.replace(
            reward, model=learned.make(network), network=network, params=params
        )
    if critic is not None:
        network = critic.model.with_config(num_layers=num_layers)
        critic = dataclasses.replace(critic, model=network, params=zeros(network, lora_of_critic))
    changed = dataclasses.replace(
        spec,
        model=model,
        reward=reward,
        critic=critic,
        plan=Plan({OTHERS: placement}),
        sampler_slices=(),
        eos_id=NO_TOKEN,
        sampling=dataclasses.replace(
            spec.sampling, row_shards=placement.mesh_shape[0] * placement.mesh_shape[1], **sampling
        ),
    )
    return changed, held(model, zeros(model, spec.lora))


def zeros(model: Model | ValueModel, lora: adapters.Config) -> Params:
    """Params of zeros, on the host.

    Args:
      model: of a role.
      lora: its adapters.
    """
    shapes = adapters.shapes(model, lora)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def filled(shapes: Tree) -> Tree:
    """Arrays of zeros (True for masks) of the shapes and shardings given."""

    def array_of(x: object) -> object:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        value = np.ones(x.shape, x.dtype) if x.dtype == np.bool_ else np.zeros(x.shape, x.dtype)
        return jax.device_put(value, x.sharding) if x.sharding is not None else value

    return jax.tree.map(array_of, shapes)


def time_call(
    spec: ProgramSpec, call: str, placement: Placement, num_layers: int, **sampling: int
) -> Measured:
    """Times one run of a call (training: one update), extrapolated from depths 1 and 2.

    Args:
      spec: of a run.
      call: its name.
      placement: of the call.
      num_layers: of the models.
      sampling: values of `sampling.Config` that differ.
    """
    programs, working_bytes = [], []
    for depth in depths(num_layers):
        program = Program(*with_depth(spec, depth, placement, **sampling))
        compiled = program.lowered(call).compile()
        working_bytes.append(bytes_of(compiled))
        programs.append(
            partial(
                _run_once, compiled, filled(program.arguments(call)), donates=call in TRAIN_CALLS
            )
        )
    return Measured(
        extrapolated(least_seconds(programs), num_layers), extrapolated(working_bytes, num_layers)
    )


def bytes_of(compiled: jax.stages.Compiled) -> int:
    """Bytes of a device that a compiled call takes beside its arguments."""
    memory = compiled.memory_analysis()
    assert memory is not None, "the backend tells no memory of a compiled program"
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _run_once(compiled: jax.stages.Compiled, arguments: Sequence[object], donates: bool) -> float:
    """Seconds of one run; what it donates is given back by what it returns."""
    inputs = list(arguments)
    if donates:
        inputs[0] = jax.block_until_ready(jax.tree.map(jnp.copy, inputs[0]))
    return _seconds(partial(compiled, *inputs))


def _seconds(function: Callable[[], object]) -> float:
    """Seconds until the arrays that a function returns are computed."""
    begin = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begin


def least_seconds(programs: Sequence[Callable[[], float]]) -> list[float]:
    """The least of `RUNS` runs of each program, which gives its seconds; they run in turn."""
    return [
        min(seconds)
        for seconds in zip(*([program() for program in programs] for _ in range(RUNS)), strict=True)
    ]


def time_rows(spec: ProgramSpec, placement: Placement) -> float:
    """Seconds of a round's credit and of cutting its updates' rows, where the policy trains."""
    program = Program(*with_depth(spec, 1, placement))
    credit, arguments = program.lowered(CREDIT).compile(), filled(program.arguments(CREDIT))
    clock = spec.clock

    def run() -> float:
        begin = time.perf_counter()
        _, batch = credit(*arguments)
        minibatches = [
            program.minibatch(batch, 0, update) for update in range(clock.updates_per_round)
        ]
        jax.block_until_ready(minibatches)
        return time.perf_counter() - begin

    run()
    return least_seconds([run])[0]


def time_move(tree_of: Callable[[int], TreeAndShardings], num_layers: int) -> float:
    """Seconds of moving a tree of arrays, extrapolated from depths 1 and 2.

    Args:
      tree_of: depth -> shapes, source shardings, target shardings.
      num_layers: of the model.
    """
    runs = []
    for depth in depths(num_layers):
        shapes, source, target = tree_of(depth)
        tree = jax.tree.map(
            lambda x, where: jax.device_put(np.zeros(x.shape, x.dtype), where), shapes, source
        )
        runs.append(partial(_seconds, partial(move, tree, target)))
        runs[-1]()  # compiles
    return extrapolated(least_seconds(runs), num_layers)
