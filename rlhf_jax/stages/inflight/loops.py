"""In-flight updates and pinned rows in the RLHF stage: their loop, and the snapshots that its
checkpoints need.
"""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from rlhf_jax.clock import Boundary, Stream
from rlhf_jax.records.streams import schedules
from rlhf_jax.records.streams.snapshots import FOLDER, Snapshots
from rlhf_jax.runtime.inflight import loop, threads
from rlhf_jax.runtime.inflight.cuts import Cut, Cuts, Saving
from rlhf_jax.runtime.inflight.one_slice import StreamSampler
from rlhf_jax.runtime.inflight.rows import Rows
from rlhf_jax.runtime.inflight.slices import SlicedSampler
from rlhf_jax.runtime.inflight.slot_program import SlotProgram, gather, place
from rlhf_jax.runtime.program import Program, ProgramSpec
from rlhf_jax.runtime.synchronous import Event, LoopMonitor, RoundEnd, Sampled
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common.recorder import crosses
from rlhf_jax.stages.common.resuming import Files
from rlhf_jax.stages.settings.rlhf import Config, stream
from rlhf_jax.types import Params, States


@dataclass(frozen=True)
class Resumed:
    """The round that training resumes from, and the arrays of its snapshot; None: boundary 0."""

    round_index: int = 0
    arrays: Mapping[str, np.ndarray] | None = None


def make_program(config: Config, spec: ProgramSpec, reference_params: Params) -> Program:
    """The compiled calls of a run, whose rounds are drawn by the engine of the config.

    Args:
      config: of the stage.
      spec: of the program.
      reference_params: the frozen reference.
    """
    if config.engine == "slots":
        sizes, drains = (config.num_slots, config.segment_steps), not config.streams
        rebuilds = bool(config.rebuild_every)
        return SlotProgram(spec, reference_params, *sizes, drains=drains, rebuilds=rebuilds)
    return Program(spec, reference_params)


def snapshots_of(workspace: Workspace, config: Config) -> Snapshots | None:
    """The snapshots of a run whose rows are admitted one by one; None for another run."""
    if not config.streams:
        return None
    return Snapshots(workspace.directory / FOLDER)


def make_sampler(program: Program, clock: Stream, saving: Saving, cut: Cut | None) -> SlicedSampler:
    """The sampling side of a program with in-flight updates or pinned rows.

    Args:
      program: the compiled calls, with the slots of the clock.
      clock: of each slice.
      saving: of its snapshots and its schedule.
      cut: to go on from; None: boundary 0.
    """
    assert isinstance(program, SlotProgram)
    here = range(program.first_slice, program.first_slice + len(program.sampler.slices))
    cuts, slices = Cuts(saving, clock, program.spec.sampling.samples_per_prompt, here), []
    for place_here, index in enumerate(here):
        pool, held = program.make_pool(place_here), program.make_held(place_here)
        rows, snapshot = Rows.of(pool.config, pool.prompts), cut and cut.slices[index]
        lock = program.dispatch_lock
        slices.append(StreamSampler(clock, pool, rows, cuts.of(index), snapshot, lock, held))
    states = [each.state for each in cut.slices] if cut else []
    return SlicedSampler(slices, cuts, here.start, states)


def looped(
    program: Program,
    config: Config,
    states: States,
    monitor: LoopMonitor | None = None,
    saving: Saving | None = None,
    resumed: Resumed | None = None,
) -> Generator[Event, None, None]:
    """The events of the loop that the config names, simulated or threaded; see `loop.run`.

    Args:
      program: the compiled calls.
      config: of the stage.
      states: of the round that training begins with; donated.
      monitor: of the loop.
      saving: of snapshots and the schedule; None: nothing is kept.
      resumed: the round to go on from; None: the first.
    """
    resumed = resumed or Resumed()
    clock = stream(config)
    cut = None if resumed.arrays is None else Cut.of(resumed.arrays, clock.num_slices)
    sampler = make_sampler(program, clock, saving or Saving(), cut)
    arguments = program, sampler, partial(place, program=program), states, resumed.round_index
    gathers = partial(gather, program=program)
    if config.loop == "synchronous":
        return loop.run(*arguments, monitor, gathers)
    limits = config.deadline_seconds, config.device_call_seconds
    return threads.run(*arguments, monitor, *limits, gathers)


def recorded(
    workspace: Workspace,
    config: Config,
    program: Program,
    states: States,
    resumed: Resumed,
    files: Files,
    monitor: LoopMonitor,
) -> Generator[Event, None, None]:
    """The events of `looped` without `Sampled`, whose snapshots and schedule go to the run's
    directory: the snapshots have the rows of rounds that are not trained yet.

    Args:
      workspace: of the run.
      config: of the stage.
      program: the compiled calls.
      states: of the round that training resumes from; donated.
      resumed: that round.
      files: of the stage; snapshots are kept for its checkpoints.
      monitor: of the loop.
    """
    kept, path = Snapshots(workspace.directory / FOLDER), schedules.path_of(workspace.directory)
    updates = config.schedule().updates_per_round
    num_slices = max(1, config.sampler_slices) * jax.process_count()
    begun = None if resumed.arrays is None else Cut.of(resumed.arrays, num_slices)
    kept.forget_after(resumed.round_index)
    schedules.cut_back(path, 0 if begun is None else begun.boundary)

    def is_wanted(round_index: int) -> bool:
        return crosses(round_index * updates, updates, config.checkpoint_every)

    def write(round_index: int, cut: Cut) -> None:
        kept.write(round_index, cut.arrays())

    def note(boundary: Boundary, ended: tuple[int, ...], slice_index: int) -> None:
        of_slice = slice_index if num_slices > 1 else None
        schedules.append(path, schedules.line(boundary, ended, of_slice))

    saving = Saving(is_wanted, write, note)
    events = looped(program, config, states, monitor, saving, resumed)
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Sampled):
                continue
            yield event
            if isinstance(event, RoundEnd):
                held = [step // updates for step in files.checkpoints.held()]
                kept.keep_for(held, event.round_index + 1)
