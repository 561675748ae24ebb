"""A run's config against its directory: what may change there and is told, what is refused, and how
to go on elsewhere.

class of the key    in a directory whose stage has a checkpoint
free                changes; written down
evaluation          changes; told: figures before and after are of different kinds
rounding            changes; told: from which version on numbers agree to rounding only
computed            changes between stages, told; refused within one
extending           may grow where every schedule is constant; refused otherwise
place, numbers      refused, with what forks the run

Another source of the package or of a user's own component is told: a reward that has raised is
mended, and the run goes on.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.config import flatten
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import (
    component_names,
    environment,
    forks,
    history,
    keys,
    run_config,
    stage_records,
    starts,
)
from rlhf_jax.run_directory.keys import Class
from rlhf_jax.run_directory.stage_records import CODE, MISSING, OWN_CODE, Change, Facts

FORKED = ("seed", "lengths", "reward", "reward_settings", "algorithm", "rlhf", "dpo")
"""Nodes whose keys may differ in a run that begins from this one. Keys that enter SFT or the reward
model may not.
"""
SHOWN = 6


@dataclass(frozen=True)
class Verdict:
    """The changes that a start finds: lines to print, and the entry for `starts.jsonl`."""

    notes: tuple[str, ...]
    newest_versions: Mapping[str, int]
    changed: Mapping[str, list[Any]]
    differences: tuple[str, ...]


def check(
    directory: Path, facts: Facts, snapshot: Mapping[str, Any], constant_schedules: bool
) -> Verdict:
    """Finds the changes since the directory's last start. Nothing is written.

    Args:
      directory: of the run.
      facts: of the run now.
      snapshot: of the environment now.
      constant_schedules: whether no learning rate of the RLHF stage depends on its number of
        updates.

    Raises Refusal for a changed key that enters numbers which were made already. It names the keys
    and the way to go on in another directory.
    """
    newest_versions = stage_records.newest_versions(directory)
    stored, problem = _stored(directory)
    notes = (
        [] if not problem else [f"{problem}; it is written again, and kept as {run_config.DAMAGED}"]
    )
    for stage in keys.STAGES:
        if stage_records.begun(directory, stage):
            notes += _check_stage(directory, stage, facts, newest_versions, constant_schedules)
    changed = {} if stored is None else _changed(stored, facts)
    notes += _notes_on_keys(changed, newest_versions)
    past = starts.read(directory)
    differences: list[str] = []
    if past and newest_versions:
        differences = environment.differences(past[-1]["environment"], snapshot)
        notes += _notes_on_code(past[-1]["digests"], facts, newest_versions)
    notes += _notes_on_environment(differences, changed, newest_versions)
    return Verdict(tuple(notes), newest_versions, changed, tuple(differences))


def settle(
    directory: Path,
    values: dict[str, Any],
    facts: Facts,
    verdict: Verdict,
    start: Mapping[str, Any],
) -> None:
    """Writes the config and a line of `starts.jsonl`; the lock is held.

    Args:
      directory: of the run.
      values: the config, nested.
      facts: of the run.
      verdict: of `check`.
      start: the further fields of the line.
    """
    run_config.write(directory, values, dict(facts.digests))
    line = dict(start) | {
        "digests": dict(facts.digests),
        "at": dict(verdict.newest_versions),
        "changed": dict(verdict.changed),
    }
    starts.write(directory, line | {"differences": list(verdict.differences)})


def _stored(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """The flattened config that the directory holds, or None, and what is wrong with the file.

    Raises Refusal where the file is damaged and nothing else says what a stage was made with.
    """
    try:
        return history.translated(
            flatten(run_config.read(directory)[0]), str(directory / run_config.FILE)
        ), ""
    except MissingInput:
        return None, ""
    except Refusal as error:
        unknown = [
            s
            for s in keys.STAGES
            if stage_records.begun(directory, s)
            and not (stage_records.folder(directory, s) / stage_records.FILE).exists()
        ]
        if unknown:
            raise Refusal(
                f"{error}, and nothing else says what the stage {unknown[0]} was made with; "
                "restore the file, or remove it to "
                "take the stage as made with this config"
            ) from None
        return None, str(error)


def _check_stage(
    directory: Path,
    stage: str,
    facts: Facts,
    newest_versions: Mapping[str, int],
    constant_schedules: bool,
) -> list[str]:
    """Notes about a stage that has begun.

    Raises Refusal where it cannot be used with this config.
    """
    record = stage_records.read(directory, stage)
    if record is None:
        return []
    refused, notes = [], []
    for change in stage_records.changes(record, facts, stage):
        kind = keys.class_of(change.key)
        if kind is Class.COMPUTED and stage_records.finished(directory, stage, facts.values):
            notes.append(
                f"the stage {stage} was computed with {change.key}={change.was}, and is used with "
                f"{change.now}"
            )
        elif kind is not Class.EXTENDING or not constant_schedules or not _grows(change):
            refused.append(change)
    if refused:
        raise Refusal(_refusal(directory, stage, refused, newest_versions, constant_schedules))
    return notes


def _grows(change: Change) -> bool:
    return MISSING not in (change.was, change.now) and change.now > change.was


def _refusal(
    directory: Path,
    stage: str,
    refused: Sequence[Change],
    newest_versions: Mapping[str, int],
    constant_schedules: bool,
) -> str:
    listed = ", ".join(map(str, refused[:SHOWN])) + (
        f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    )
    why = "enter the numbers" if len(refused) > 1 else "enters the numbers"
    if [change.key for change in refused] == ["rlhf.total_prompts"]:
        why = "a learning rate ends with it" if not constant_schedules else "a run may only grow"
    instead = _elsewhere(directory, refused, newest_versions)
    return (
        f"the stage {stage} of {directory} was made with another config: {listed}: {why}; {instead}"
    )


def _elsewhere(
    directory: Path, refused: Sequence[Change], newest_versions: Mapping[str, int]
) -> str:
    """The remedy for changed keys."""
    all_forks = all(change.key.partition(".")[0] in FORKED for change in refused)
    version = newest_versions.get("rlhf", newest_versions.get("dpo"))
    run = forks.source(directory, version) if all_forks else None
    if run is None:
        return forks.ELSEWHERE
    again = (
        "" if version is None else f" (--config.begin={shlex.quote(str(run))}: from its SFT policy)"
    )
    return f"{forks.advice(directory, version)} to go on from here elsewhere{again}"


def _changed(stored: Mapping[str, Any], facts: Facts) -> dict[str, list[Any]]:
    """{key: [before, now]} of every key that has changed; None for a missing key."""
    older = {
        key: history.older_value(key, facts.defaults.get(key))
        for key in facts.values.keys() - stored.keys()
    }
    stored_values = dict(stored) | older
    names = sorted((stored_values.keys() | facts.values.keys()) - {"job", "directory"})
    pairs = {key: (stored_values.get(key), facts.values.get(key)) for key in names}
    return {
        key: [before, now]
        for key, (before, now) in pairs.items()
        if not component_names.same(key, before, now)
    }


def _notes_on_keys(
    changed: Mapping[str, list[Any]], newest_versions: Mapping[str, int]
) -> list[str]:
    """One line for each class of allowed changes; none in a directory without a checkpoint."""
    if not newest_versions:
        return []
    consequences = {
        Class.FREE: "no number changes",
        Class.EVALUATION: "figures of evaluations before and after are of different kinds "
        f"({_from_here(newest_versions, False)})",
        Class.ROUNDING: _from_here(newest_versions),
        Class.EXTENDING: f"the run is {_direction(changed)} ({_from_here(newest_versions, False)})",
    }
    notes = []
    for kind, consequence in consequences.items():
        keys_of_kind = [key for key in changed if keys.class_of(key) is kind]
        if keys_of_kind:
            listed = ", ".join(
                f"{key} was {changed[key][0]!r} and is {changed[key][1]!r}" for key in keys_of_kind
            )
            notes.append(f"{listed}: {consequence}")
    return notes


def _direction(changed: Mapping[str, list[Any]]) -> str:
    """The word for a changed extending key, compared with the start before.

    That start may have asked for a longer run which has not begun.
    """
    pairs = [pair for key, pair in changed.items() if keys.class_of(key) is Class.EXTENDING]
    return "longer" if all(before is None or now > before for before, now in pairs) else "shorter"


def _notes_on_code(
    before: Mapping[str, str], facts: Facts, newest_versions: Mapping[str, int]
) -> list[str]:
    """One line for the package's code, and one for each component of a user's own, if it has
    changed.
    """
    notes = []
    for name, digest in sorted(facts.digests.items()):
        if (name == CODE or name.startswith(OWN_CODE)) and before.get(name, digest) != digest:
            what = "the code" if name == CODE else f"the code of {name.removeprefix(OWN_CODE)}"
            notes.append(
                f"{what} differs from that which made versions up to {_versions(newest_versions)}"
            )
    return notes


def _notes_on_environment(
    differences: Sequence[str], changed: Mapping[str, list[Any]], newest_versions: Mapping[str, int]
) -> list[str]:
    """One line for each difference.

    The number of devices is left out where a change of the mesh is listed already.
    """
    mesh_is_told = any(key.startswith("mesh.") for key in changed)
    notes = []
    for difference in differences:
        only_rounding = difference.startswith(environment.COUNTS)
        if only_rounding and mesh_is_told:
            continue
        consequence = (
            _from_here(newest_versions)
            if only_rounding
            else f"{_from_here(newest_versions, False)}, numbers may be others"
        )
        notes.append(f"{difference}: {consequence}")
    return notes


def _versions(newest_versions: Mapping[str, int]) -> str:
    stage = list(newest_versions)[-1]
    return f"{newest_versions[stage]} of {stage}"


def _from_here(newest_versions: Mapping[str, int], rounding: bool = True) -> str:
    from_version = f"from version {_versions(newest_versions)} on"
    return (
        f"{from_version}, numbers agree with those of before to rounding only"
        if rounding
        else from_version
    )
