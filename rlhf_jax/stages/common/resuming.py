"""Resumes the RLHF stage: from the newest checkpoint that is whole and has its rounds; records are
cut back to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlhf_jax.clock import Clock
from rlhf_jax.devices import distributed
from rlhf_jax.records import ledger, lines, metrics, notes
from rlhf_jax.records.checkpoints import Checkpoints, Damaged, Unusable, problem_of
from rlhf_jax.records.ledger import STAGE, Ledger
from rlhf_jax.records.notes import say
from rlhf_jax.records.samples import SamplesWriter
from rlhf_jax.records.saved_rounds import FOLDER, SavedRounds, path_of
from rlhf_jax.records.streams.snapshots import FOLDER as STREAM_FOLDER
from rlhf_jax.records.streams.snapshots import Snapshots, paths_of
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import forks, history, stage_records
from rlhf_jax.runtime.sampler import version_range
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.rlhf import Config
from rlhf_jax.types import Params, Samples, States

Layout = Callable[[Samples], Samples]


@dataclass(frozen=True)
class Files:
    """Files of a run of the stage besides its metrics."""

    checkpoints: Checkpoints
    saved_rounds: SavedRounds
    samples: SamplesWriter
    ledger: Ledger


@dataclass(frozen=True)
class ResumePoint:
    """The point that training resumes from: version 0 without states, a version with its states and
    pending rounds, or the end.

    `stream` is the snapshot of the sampling side of a run with in-flight updates. Of a run that has
    ended `policy` is what it trained, and the rest is not read.
    """

    version: int = 0
    states: States | None = None
    pending: dict[int, Samples] = field(default_factory=dict)
    stream: Mapping[str, np.ndarray] | None = None
    policy: Params | None = None


def choose(
    checkpoints: Checkpoints,
    saved_rounds: SavedRounds,
    clock: Clock,
    abstract: States,
    layout: Layout,
    ended_rounds: int = 0,
    snapshots: Snapshots | None = None,
) -> ResumePoint:
    """Chooses the checkpoint to resume from; one that is damaged or lacks its rounds is named and
    passed over; collective.

    Args:
      ended_rounds: of a run that has grown, see `ended_rounds`.
      abstract: of the states, as `Checkpoints.restore` takes it.
      layout: of a round's samples, as `SavedRounds.read` takes it.
      snapshots: of a run with in-flight updates.

    Raises Refusal where there are checkpoints and none can be used, or one is later than the run's
    end. Nothing is changed.
    """
    newest = checkpoints.latest()
    if newest is not None and newest > clock.num_updates:
        raise Refusal(
            f"{checkpoints.directory} has version {newest}, but the run ends with version "
            f"{clock.num_updates}: it was made "
            "with more prompts; accepted: the rlhf.total_prompts that it was made with"
        )

    def read(step: int) -> ResumePoint:
        if step == clock.num_updates:
            return ResumePoint(step, policy=policy_of(checkpoints, step, abstract))
        if why := never_sampled(clock, step, ended_rounds):
            raise Unusable(why)
        first_round = step // clock.updates_per_round
        stream = None if snapshots is None else snapshots.read(first_round)
        pending = read_pending(saved_rounds, clock, first_round, layout)
        return ResumePoint(step, checkpoints.restore(step, abstract), pending, stream)

    restored = checkpoints.newest(read, _fork(checkpoints))
    return ResumePoint() if restored is None else restored[1]


def policy_of(checkpoints: Checkpoints, version: int, abstract: States) -> Params:
    """The policy's params of a version; the rest of its states is not read. Raises Damaged.

    Args:
      checkpoints: of the stage.
      version: that is saved.
      abstract: as in `choose`.
    """
    wanted = {"policy": {"params": abstract["policy"].params}}
    return checkpoints.restore_part(version, wanted)["policy"]["params"]


def _fork(checkpoints: Checkpoints) -> str:
    """The command that goes on in another directory with a policy that is whole, where its other
    files are not.
    """
    return _fork_of(
        checkpoints.directory.parents[1],
        [step for step in checkpoints.steps() if not checkpoints.problem(step)],
    )


def _fork_of(run: Path, whole: list[int]) -> str:
    """The command that begins elsewhere from the newest of a run's whole versions, or ""."""
    if not whole or forks.source(run, whole[-1]) is None:
        return ""
    return f", or {forks.advice(run, whole[-1])} to begin another run from that policy"


def ended_rounds(directory: Path, config: Config) -> int:
    """The rounds of the run that a directory's checkpoints are of, where the config makes it
    longer; else 0.

    Args:
      directory: of the run; the record of its stage is that of the shorter run until training goes
        on.
      config: of the run now.
    """
    record = stage_records.read(directory, STAGE)
    if record is None:
        return 0
    total_prompts = history.translated(record.config, str(record.source)).get(
        "rlhf.total_prompts", config.total_prompts
    )
    if total_prompts >= config.total_prompts:
        return 0
    return total_prompts // (config.num_minibatches * config.prompts_per_update)


def never_sampled(clock: Clock, step: int, ended: int) -> str:
    """Returns why a version of a run that has grown lacks rounds that the longer run would have
    sampled by then, or "".

    Args:
      clock: of the longer run.
      step: the version.
      ended: rounds of the shorter run; 0 where the run has not grown.
    """
    if not ended or step > ended * clock.updates_per_round:
        return ""
    first_round = step // clock.updates_per_round
    begun = clock.issued_before(first_round)
    if clock.streams:  # rows of these rounds were admitted before it
        begun = [first_round - 1 + clock.lag]
    if max(begun, default=-1) < ended:
        return ""
    end = ended * clock.updates_per_round
    return f"the run was to end at version {end}, and its following rounds, from {ended} on, were never sampled"


def check_growth(directory: Path, config: Config) -> None:
    """Raises Refusal where a run is to grow and has no version to go on from, before anything is
    written.
    """
    ended, steps = ended_rounds(directory, config), stage_records.steps(directory, STAGE)
    if not ended or not steps or config.clock == "bounded":
        return
    clock, place, passed = config.schedule(), stage_records.folder(directory, STAGE), {}
    for step in reversed(steps):
        rounds = [
            path_of(directory / FOLDER, r)
            for r in clock.issued_before(step // clock.updates_per_round)
        ]
        if clock.streams:
            rounds = paths_of(directory / STREAM_FOLDER, step // clock.updates_per_round)
        missing = [f"{path} is missing" for path in rounds if not path.exists()]
        why = (
            problem_of(place, step) or never_sampled(clock, step, ended) or next(iter(missing), "")
        )
        if not why:
            return
        passed[step] = why
    listed = "; ".join(f"{step}: {why}" for step, why in sorted(passed.items()))
    short = ended * config.num_minibatches * config.prompts_per_update
    raise Refusal(
        f"rlhf.total_prompts is {config.total_prompts}, and {place} was made with {short}, but the "
        "run cannot grow from a "
        f"checkpoint there ({listed}); nothing was changed: keep rlhf.total_prompts={short}"
        f"{_fork_of(directory, [step for step in steps if not problem_of(place, step)])}"
    )


def read_pending(
    saved_rounds: SavedRounds, clock: Clock, first_round: int, layout: Layout
) -> dict[int, Samples]:
    """Samples of rounds from `first_round` on that were there when it began.

    In bounded mode those that follow one another and were sampled by then: a round of later params,
    or one whose file is damaged, is sampled again. Raises Damaged, naming the file, in the other
    modes.
    """
    if not clock.bounded:
        return {r: saved_rounds.read(r, layout) for r in clock.issued_before(first_round)}
    found: dict[int, Samples] = {}
    for round_index in range(first_round, clock.num_rounds):
        if not saved_rounds.has([round_index]):
            break
        try:
            samples = saved_rounds.read(round_index, layout)
        except Damaged as error:
            say(f"{error}: the round is sampled again")
            break
        if version_range(samples)[1] > first_round * clock.updates_per_round:
            break
        found[round_index] = samples
    return found


def cut_back(
    workspace: Workspace,
    config: Config,
    clock: Clock,
    version: int,
    files: Files,
) -> None:
    """Makes the records those of a run that has come to `version`, and moves later checkpoints
    aside; collective.

    Args:
      workspace: of the run.
      config: of the stage.
      clock: of its rounds.
      version: that training resumes from.
      files: that are cut back.

    Lines go to `set_aside/` with the checkpoints; they come again once training has passed them.
    Says where lines are missing.
    """
    later = [step for step in files.checkpoints.steps() if step > version]
    lost = distributed.agree(
        _updates_without_checkpoint(workspace, config, clock)
        if not files.checkpoints.steps()
        else 0
    )
    aside: dict[str, Path | None] = dict.fromkeys(
        (metrics.FILE, files.samples.path.name, files.ledger.path.name)
    )
    if later or lost:
        folder = files.checkpoints.aside / f"{max([*later, lost])}.lines"
        aside = {name: folder / name for name in aside}
    if lost:
        say(
            f"no checkpoint is left of {lost} updates of {STAGE}: it begins again at version 0, "
            "and their lines are kept in "
            f"{files.checkpoints.aside / f'{lost}.lines'}"
        )
    files.checkpoints.set_aside_after(version)
    # The version of a checkpoint was evaluated before the checkpoint was written; version 0 has no
    # checkpoint.
    evaluations_from = version + 1 if version else 0
    workspace.metrics.resume(STAGE, version, evaluations_from, aside[metrics.FILE])
    files.samples.resume(STAGE, version, aside[files.samples.path.name])
    files.ledger.resume(
        version,
        aside[files.ledger.path.name],
        clock.updates_per_round if config.ledger else None,
    )


def say_cut(workspace: Workspace, config: Config, clock: Clock) -> None:
    """Says of a run that has ended which of its records end before it.

    Args:
      workspace: of the run.
      config: of the stage.
      clock: of its rounds.
    """
    kept = {metrics.FILE: 1} | ({ledger.FILE: clock.updates_per_round} if config.ledger else {})
    for name, step in kept.items():
        path = workspace.directory / name
        notes.say_cut(path, STAGE, lines.last_update(path, STAGE), clock.num_updates, step)


def _updates_without_checkpoint(workspace: Workspace, config: Config, clock: Clock) -> int:
    """The number of updates in the metrics, where there must have been a checkpoint by then; else
    0.
    """
    if not config.checkpoint_every:
        return 0
    last = lines.last_update(workspace.metrics.path, STAGE)
    done = 0 if last is None else last + 1
    return done if done > 2 * config.checkpoint_every + clock.updates_per_round else 0
