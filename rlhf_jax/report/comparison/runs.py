"""Reads the runs that are compared, refuses those that do not compare, and groups them by config.

Runs of one group differ in their seed alone. Keys that a run lacks, as one of an older version
does, make no difference.
"""

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_jax.config import flatten
from rlhf_jax.records.jsonl import Line
from rlhf_jax.refusal import Refusal
from rlhf_jax.report import read, units
from rlhf_jax.report.read import Run
from rlhf_jax.report.units import Units
from rlhf_jax.run_directory import keys
from rlhf_jax.run_directory.keys import Class
from rlhf_jax.run_directory.run_config import DIGESTS
from rlhf_jax.run_directory.stage_records import CODE, DATA, NAMES

ASIDE = frozenset({"seed", "job", "directory", "compile_cache", "task.cache_dir"})
"""Keys that make no group: the seed, and keys that name places and jobs."""
BEGIN = "begin"
MAX_IN_LABEL = 3
ABSENT = "–"


@dataclass(frozen=True)
class Compared:
    """A run that is compared: its config by dotted keys, its units and its evaluations."""

    run: Run
    values: Mapping[str, Any]
    units: Units
    curve: tuple[Line, ...]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.values["seed"])

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of the data and the code that the run was made with."""
        return (self.run.config or {}).get(DIGESTS, {})

    @cached_property
    def result(self) -> dict[str, Any]:
        """The run as `report/statistics.py` takes it."""
        return {"seed": self.seed, "curve": list(self.curve), "run": self}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; `label` says in which keys they differ from others."""

    letter: str
    label: str
    runs: tuple[Compared, ...]

    @property
    def name(self) -> str:
        """Letter and label."""
        return f"{self.letter}: {self.label}"

    @property
    def seeds(self) -> list[int]:
        """The seeds, each once."""
        return sorted({run.seed for run in self.runs})


@dataclass(frozen=True)
class Comparison:
    """Groups of runs.

    `differing` has the values of the differing keys of each group, `own` those of keys that only
    some components have, `notices` sentences about the limits of the comparison.
    """

    groups: tuple[Group, ...]
    differing: Mapping[str, tuple[str, ...]]
    own: Mapping[str, tuple[str, ...]]
    notices: tuple[str, ...]

    @property
    def runs(self) -> list[Compared]:
        """Every run."""
        return [run for group in self.groups for run in group.runs]

    @property
    def units(self) -> Units:
        """The units of the figures that all runs share."""
        return self.runs[0].units


def directories(given: Iterable[str]) -> list[Path]:
    """The directories of paths and patterns, each once.

    A pattern stands for the run directories that it matches; other matches are passed over.

    Raises Refusal for a pattern that matches no run.
    """
    chosen: list[Path] = []
    for text in given:
        if glob.has_magic(text) and not Path(text).exists():
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            matches = [match for match in matches if (match / "config.json").is_file()]
            if not matches:
                raise Refusal(f"no run directory matches the pattern {text!r}")
            chosen += matches
        else:
            chosen.append(Path(text))
    return list({path.resolve(): path for path in chosen}.values())


def compare(given: Sequence[str]) -> Comparison:
    """Reads runs and groups them.

    Args:
      given: run directories, and patterns of them.

    Raises MissingInput for a path that is no run; Refusal for fewer than two runs, for a run without
    an evaluation in RLHF, and for runs of different tasks or units.
    """
    paths = directories(given)
    if len(paths) < 2:
        named = f": {paths[0]}" if paths else ""
        raise Refusal(f"a comparison needs two runs or more, and {len(paths)} is given{named}")
    runs = [_compared(path) for path in paths]
    _check_alike(runs)
    return grouped(runs)


def _compared(path: Path) -> Compared:
    run = read.read_run(path)
    if run.config is None:
        raise Refusal(f"{path} has no config.json, so that nothing says what its figures are of")
    stages = ", ".join(read.stages(run.lines)) or "none"
    curve, updates = read.policy_evaluations(run.lines), read.policy_updates(run.lines)
    if not updates and not curve:
        raise Refusal(f"{path} has no update of a policy to compare; its stages: {stages}")
    if read.before_and_after(run.lines)[1] is None:
        raise Refusal(f"{path} has no evaluation of a trained policy yet; its stages: {stages}")
    values = {
        key: value for key, value in flatten(run.config).items() if key.split(".")[0] != DIGESTS
    }
    if not isinstance(values.get("seed"), int):
        raise Refusal(f"{path / 'config.json'} has no seed; accepted: the config of a run")
    resolved = units.resolve(run.config, run.lines, run.samples)
    timed = _timed(run.lines, curve)
    if not _is_judged(timed[-1]) and timed[-1].get("reward_mean") is None:
        timed = _with_training_reward(timed, updates)
    return Compared(run, values, resolved, tuple(timed))


def _is_judged(line: Line) -> bool:
    """True where an evaluation has a score of the gold judge."""
    return line.get("gold_mean") is not None


def _with_training_reward(curve: Sequence[Line], updates: Sequence[Line]) -> list[Line]:
    """Evaluations with the mean reward of the samples trained on since the evaluation before."""
    lines, before = [], 0
    for line in curve:
        rewards = [
            update["reward_standardized"]
            for update in updates
            if before <= update["update"] < line["update"]
            and update.get("reward_standardized") is not None
        ]
        mean = {"training_reward": sum(rewards) / len(rewards)} if rewards else {}
        lines.append(line | mean)
        before = line["update"]
    return lines


def _timed(lines: Sequence[Line], curve: Sequence[Line]) -> list[Line]:
    """Evaluations with the seconds of RLHF or DPO over all its processes, in each of which they begin
    anew.
    """
    offset, last, seconds, stage = 0.0, 0.0, {0: 0.0}, read.trained(lines)
    for line in lines:
        if stage not in (line["stage"], line.get("of")) or "seconds" not in line:
            continue
        if line["seconds"] < last:
            offset += last
        last = line["seconds"]
        if line.get("of") == stage:
            seconds[line["update"]] = offset + last
    return [line | {"seconds": seconds.get(line["update"])} for line in curve]


def _check_alike(runs: Sequence[Compared]) -> None:
    """Raises Refusal where the figures of two runs are of different things."""
    first = runs[0]
    for other in runs[1:]:
        pairs = (
            ("tasks", first.values.get("task.name"), other.values.get("task.name")),
            ("gold units", first.units.gold.title, other.units.gold.title),
            (
                "gold judges",
                first.values.get("pretrained.gold", ""),
                other.values.get("pretrained.gold", ""),
            ),
        )
        for what, a, b in pairs:
            if a != b:
                raise Refusal(
                    f"runs of different {what} do not compare: {first.run.directory} has {a!r}, "
                    f"{other.run.directory} has {b!r}"
                )
    if all(_is_judged(run.curve[-1]) for run in runs):
        return
    for other in runs[1:]:
        pairs = (
            ("rewards", first.values.get("reward"), other.values.get("reward")),
            ("reward units", first.units.learned.unit, other.units.learned.unit),
        )
        for what, a, b in pairs:
            if a != b:
                raise Refusal(
                    f"runs of different {what} do not compare without a gold score: "
                    f"{first.run.directory} has {a!r}, {other.run.directory} has {b!r}"
                )


def grouped(runs: Sequence[Compared]) -> Comparison:
    """Groups runs by the keys that differ; each run is a group where only seeds do."""
    differing = [key for key in _differing(runs) if key not in ASIDE]
    notices = _notices(runs, differing)
    if BEGIN in differing and _is_of_seed(runs, differing):
        differing.remove(BEGIN)
        notices.append(
            "Each seed begins from a run of its own: `begin` is taken as a part of the seed."
        )
    members: dict[tuple[str, ...], list[Compared]] = {}
    for run in runs:
        members.setdefault(tuple(shown(run.values, key) for key in differing), []).append(run)
    if len(members) == 1:
        notices.insert(
            0,
            "The runs have the same config apart from their seeds, so that each is shown by itself.",
        )
        labels = [f"seed {run.seed} ({run.run.title})" for run in runs]
        parts = [(run,) for run in runs]
    else:
        labels = [label(dict(zip(differing, values, strict=True))) for values in members]
        parts = [tuple(sorted(group, key=lambda run: run.seed)) for group in members.values()]
    groups = tuple(
        Group(letter(index), text, part)
        for index, (text, part) in enumerate(zip(labels, parts, strict=True))
    )

    def columns(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(shown(group.runs[0].values, name) for group in groups) for name in names
        }

    return Comparison(groups, columns(differing), columns(_own(runs, differing)), tuple(notices))


def letter(index: int) -> str:
    """The name of a group: A to Z, then A2, B2 and so on.

    >>> letter(0), letter(27)
    ('A', 'B2')
    """
    return chr(ord("A") + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def _differing(runs: Sequence[Compared]) -> list[str]:
    """Keys that have two values or more among the runs that have them."""
    names = dict.fromkeys(key for run in runs for key in run.values)
    return sorted(
        (
            key
            for key in names
            if len({shown(run.values, key) for run in runs if key in run.values}) > 1
        ),
        key=_rank,
    )


def _rank(key: str) -> tuple[int, str]:
    """The order of keys: a component's name first, then RLHF's own, then the stages before it."""
    if key in NAMES:
        return 0, key
    nodes = ("algorithm", "rlhf", "dpo", "reward", "reward_settings", "model", BEGIN)
    node = key.partition(".")[0]
    return (1 + nodes.index(node) if node in nodes else len(nodes) + 1), key


def _own(runs: Sequence[Compared], differing: Sequence[str]) -> list[str]:
    """Keys that only one of two differing components has, such as an algorithm's."""
    nodes = {NAMES[key] for key in differing if key in NAMES}
    names = dict.fromkeys(key for run in runs for key in run.values)
    return sorted(
        key
        for key in names
        if key.partition(".")[0] in nodes and not all(key in run.values for run in runs)
    )


def shown(values: Mapping[str, Any], key: str) -> str:
    """A value of a config as text; a dash where the config lacks the key."""
    if key not in values:
        return ABSENT
    value = values[key]
    return value if isinstance(value, str) and value else json.dumps(value)


def label(values: Mapping[str, str]) -> str:
    """A group in a few words: its values of the first differing keys; the names of the keys where it
    has no values and the other groups have some.

    >>> label({"algorithm.name": "grpo", "rlhf.lag": "4"})
    'grpo, lag 4'
    >>> label({"lora.base_dtype": '""'})
    'without base dtype'
    """
    words, lacking, names = [], [], [key.rpartition(".")[2] for key in values]
    for (key, value), name in zip(values.items(), names, strict=True):
        short = (key if names.count(name) > 1 else name).replace("_", " ")
        if value in (ABSENT, '""', "[]"):
            lacking.append(short)
        elif keys.class_of(key) is not Class.EVALUATION:
            words.append(value if key in NAMES else f"{short} {value}")
    if not (first := words or lacking):
        return "all runs"
    more = f" and {len(first) - MAX_IN_LABEL} more" * (len(first) > MAX_IN_LABEL)
    return ("" if words else "without ") + ", ".join(first[:MAX_IN_LABEL]) + more


def _is_of_seed(runs: Sequence[Compared], differing: Sequence[str]) -> bool:
    """True where the seed, and the keys of the stages before RLHF, say which run each begins from.

    Runs that agree on them begin from one run, and the others from another.
    """
    before = [key for key in differing if key != BEGIN and keys.enters(key, "reward_model")]
    parts = [(run.seed, *(shown(run.values, key) for key in before)) for run in runs]
    begins = [shown(run.values, BEGIN) for run in runs]
    return len(set(zip(begins, parts, strict=True))) == len(set(begins)) == len(set(parts))


def _notices(runs: Sequence[Compared], differing: Sequence[str]) -> list[str]:
    """Sentences about the limits of the comparison."""
    notices = []
    for run in runs:
        stage = read.trained(run.run.lines)
        if not read.ended(run.run.lines, stage):
            done, name = len(read.policy_updates(run.run.lines)), stage.upper()
            notices.append(f"`{run.run.title}` has not ended: {done} updates of {name} are done.")
    of_evaluation = [key for key in differing if keys.class_of(key) is Class.EVALUATION]
    if of_evaluation:
        notices.append(
            f"Evaluations are of different kinds ({', '.join(f'`{key}`' for key in of_evaluation)}"
            "): their figures compare only roughly."
        )
    if len({run.curve[-1]["update"] for run in runs}) > 1:
        notices.append("The last evaluations are after different numbers of updates.")
    if len({run.units.learned for run in runs}) > 1:
        notices.append("The learned reward is in different units, so that it is left out.")
    contents = {
        DATA: "The task's data differ between runs: figures are of different prompts.",
        CODE: "The runs were made by different versions of the code.",
    }
    for name, sentence in contents.items():
        if len({run.digests[name] for run in runs if run.digests.get(name)}) > 1:
            notices.append(sentence)
    return notices
