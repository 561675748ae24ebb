"""Reads a run directory for its report, also that of a run that is not finished."""

import contextlib
import gc
import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.config import flatten, with_leaves
from rlhf_jax.records import ledger, metrics, rates, samples, timeline
from rlhf_jax.records.jsonl import Line, read
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.records.lines import iterate
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import history
from rlhf_jax.run_directory.run_config import DIGESTS

BASE = "sft"
TRAINED = STAGE
DPO = "dpo"
BEST_OF_N = "best_of_n"
STARTS = "starts.jsonl"
NOTICE = "notice"
FIELDS = frozenset({"stage", "update", "seconds", "of", "kind"})


@dataclass(frozen=True)
class Run:
    """A run directory; `missing` says in words what is not there yet.

    `starts` are the lines of starts.jsonl, `spans` those of timeline.jsonl: all of the process that
    wrote last, and the first of each process before it.
    """

    directory: Path
    config: dict[str, Any] | None
    lines: list[Line]
    samples: list[Line]
    missing: tuple[str, ...]
    spans: tuple[Line, ...] = ()
    starts: tuple[Line, ...] = ()

    @property
    def title(self) -> str:
        """The directory's own name."""
        return self.directory.resolve().name

    @cached_property
    def tokens_by_version(self) -> dict[int, dict[int, int]]:
        """The tokens of each round by version, as `ledger.tokens_by_version` gives them; {} for a
        run whose rows have one version each, or that keeps no ledger.
        """
        path = self.directory / ledger.FILE
        is_mixed = path.exists() and has_mixed_rows(updates(self.lines, TRAINED))
        return ledger.tokens_by_version(path) if is_mixed else {}


@dataclass(frozen=True)
class Series:
    """A figure over updates. `stderr` is NaN where the lines give none."""

    updates: list[int]
    values: list[float]
    stderr: list[float]


@dataclass(frozen=True)
class Spread:
    """The median of a figure over updates, its 10th and 90th percentile, and the number of
    updates.
    """

    median: float
    low: float
    high: float
    count: int


def read_run(directory: Path) -> Run:
    """Raises MissingInput where there is no run at all, Refusal that names file and line for a
    broken file.
    """
    files = {name: directory / name for name in ("config.json", metrics.FILE, samples.FILE)}
    exists = {name: path.exists() for name, path in files.items()}
    if not any(exists.values()):
        raise MissingInput(f"{directory} is no run directory: none of {', '.join(files)} is in it")
    config = _config(files["config.json"]) if exists["config.json"] else None
    with _without_collection():
        lines, texts, starts = map(
            _read_if_there, (files[metrics.FILE], files[samples.FILE], directory / STARTS)
        )
        spans = _spans(directory / timeline.FILE)
    absent = [f"{name} is not there" for name, present in exists.items() if not present]
    missing = (*absent, *_missing(lines, texts, _begins_elsewhere(config)))
    return Run(directory, config, lines, texts, missing, spans, tuple(starts))


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Context manager without the collector of cycles, which would go through a million lines again
    and again as they are read, and find none.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _begins_elsewhere(config: dict[str, Any] | None) -> bool:
    """True where the SFT policy is another run's, or a published one."""
    config = config or {}
    return bool(config.get("begin") or config.get("pretrained", {}).get("sft"))


def _config(path: Path) -> dict[str, Any]:
    """The resolved config. Raises Refusal that names the file where it is damaged."""
    try:
        values = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text at all
        raise Refusal(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise Refusal(f"{path} is damaged: it holds {type(values).__name__}; accepted: an object")
    digests = values.pop(DIGESTS, {})
    return with_leaves({}, history.translated(flatten(values), str(path))) | {DIGESTS: digests}


def _spans(path: Path) -> tuple[Line, ...]:
    """The spans that `Run` has; those of earlier processes are not held."""
    before: list[Line] = []
    newest: list[Line] = []
    for span in iterate(path) if path.exists() else ():
        if newest and span["began"] != newest[0]["began"]:
            before.append(newest[0])
            newest = []
        newest.append(span)
    return (*before, *newest)


def _read_if_there(path: Path) -> list[Line]:
    return read(path) if path.exists() else []


def notices(lines: Sequence[Line]) -> list[str]:
    """Sentences that the run wrote about itself, lines {"kind": "notice", "text": ...} of
    metrics.jsonl; each once.
    """
    return list(
        dict.fromkeys(
            line["text"] for line in lines if line.get("kind") == NOTICE and line.get("text")
        )
    )


def _missing(lines: Sequence[Line], texts: Sequence[Line], begins_elsewhere: bool) -> list[str]:
    missing, policy = [], trained(lines)
    for stage in (policy,) if begins_elsewhere else (BASE, policy):
        if not ended(lines, stage):
            done = len(updates(lines, stage))
            missing.append(
                f"stage {stage} has not {f'ended ({done} updates done)' if done else 'begun'}"
            )
    before, after = before_and_after(lines)
    missing += [
        f"no evaluation {when} training"
        for when, line in (("before", before), ("after", after))
        if not line
    ]
    return missing + [
        f'no samples "{kind}"' for kind in ("before", "after") if not select(texts, kind)
    ]


def stages(lines: Sequence[Line]) -> list[str]:
    """Stages that trained something or took time, in the order in which they began."""
    return list(
        dict.fromkeys(
            line["stage"] for line in lines if "of" not in line and line.get("kind") != NOTICE
        )
    )


def updates(lines: Sequence[Line], stage: str) -> list[Line]:
    """The lines of a stage's updates."""
    return [
        line for line in lines if line["stage"] == stage and "update" in line and "of" not in line
    ]


def ended(lines: Sequence[Line], stage: str) -> bool:
    """True where the stage has written its timing, the last thing that it does, or a later stage
    has begun.

    A run killed just before the timing is written finds nothing to do in that stage when it is
    started again.
    """
    if any(line["stage"] == stage and line.get("kind") == "timing" for line in lines):
        return True
    return bool(updates(lines, stage)) and stages(lines)[-1] != stage


def evaluations(lines: Sequence[Line], of: str) -> list[Line]:
    """The evaluations of a stage's versions."""
    return [line for line in lines if line.get("of") == of]


def trained(lines: Sequence[Line]) -> str:
    """The stage that trains the policy of a run: "dpo" where a line is of it, else "rlhf"."""
    return DPO if any(DPO in (line["stage"], line.get("of")) for line in lines) else TRAINED


def has_mixed_rows(trained: Sequence[Line]) -> bool:
    """True where some rows that were trained on have tokens of more than one version.

    Args:
      trained: lines of updates; those of older runs have no such share, and no such rows.
    """
    return any(line.get("mixed_share", 0) for line in trained)


def has_several_ages(trained: Sequence[Line]) -> bool:
    """True where the tokens of some update have different ages: rows of several versions, or rounds
    put together of rows of several rounds.

    Args:
      trained: lines of updates; those of older runs have no such figures.
    """
    return any(line.get("age_mean") != line.get("age_max") for line in trained)


def policy_updates(lines: Sequence[Line]) -> list[Line]:
    """The updates of the stage that trains the policy of a run."""
    return updates(lines, trained(lines))


def policy_evaluations(lines: Sequence[Line], stage: str = "", base: str = BASE) -> list[Line]:
    """Evaluations of a trained policy, its version 0 included.

    If version 0 was not evaluated, the last evaluation of the base takes its place.

    Args:
      lines: of metrics.jsonl.
      stage: that trained it; "": see `trained`.
      base: the stage that made the params that it began with.
    """
    of_stage = evaluations(lines, stage or trained(lines))
    if any(line["update"] == 0 for line in of_stage) or not of_stage:
        return of_stage
    return [line | {"update": 0} for line in evaluations(lines, base)[-1:]] + of_stage


def before_and_after(lines: Sequence[Line]) -> tuple[Line | None, Line | None]:
    """The evaluation of the policy as training began, and that of its last evaluated version."""
    evaluated = policy_evaluations(lines) or evaluations(lines, BASE)[-1:]
    before = (
        evaluated[0]
        if evaluated and (evaluated[0]["update"] == 0 or evaluated[0]["of"] == BASE)
        else None
    )
    after = (
        evaluated[-1]
        if evaluated and evaluated[-1]["of"] == trained(lines) and evaluated[-1]["update"] > 0
        else None
    )
    return before, after


def select(texts: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in texts if line["kind"] == kind]


def series(lines: Sequence[Line], name: str) -> Series | None:
    """The values of a figure in the lines that have it; None if no line has it.

    An infinite value becomes NaN, which leaves a gap in the curve.

    Args:
      lines: with an "update" each.
      name: of the figure.
    """
    points = [line for line in lines if isinstance(line.get(name), (int, float))]
    if not points:
        return None
    values = [float(line[name]) if math.isfinite(line[name]) else math.nan for line in points]
    of_stderr = f"{name}_stderr"
    stderr = [line.get(of_stderr, math.nan) for line in points]
    return Series([line["update"] for line in points], values, stderr)


def figure_names(lines: Sequence[Line]) -> list[str]:
    """Every figure that lines have, in the order of first appearance, standard errors and timings
    aside.
    """
    kinds = dict.fromkeys(map(tuple, lines))  # most lines of a stage have the same names
    names = dict.fromkeys(name for kind in kinds for name in kind if name not in FIELDS)
    return [name for name in names if not name.endswith("_stderr") and not rates.is_timing(name)]


def speeds(lines: Sequence[Line]) -> dict[str, dict[str, Spread]]:
    """The figures of speed that the lines of updates have (`records/rates`), by stage and name, in
    the order of first appearance. `seconds`, which is no speed, is left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if "update" not in line or "of" in line:
            continue
        for name, value in line.items():
            known = name not in FIELDS and rates.is_timing(name) and isinstance(value, int | float)
            if known and math.isfinite(value):
                found.setdefault(line["stage"], {}).setdefault(name, []).append(float(value))
    return {
        stage: {name: _spread(values) for name, values in of_stage.items()}
        for stage, of_stage in found.items()
    }


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = np.percentile(values, (10, 50, 90))
    return Spread(float(median), float(low), float(high), len(values))


def stage_seconds(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Seconds by stage and part; the parts of a stage sum to its wall time.

    "start" is the time to a process's first update beyond that of an update as usual: reading,
    making params, compiling. It is left out of a process whose timing names the seconds of
    compilation itself. "other" is what no part accounts for. A stage that was resumed took the time of every
    process: "seconds" starts again in each, and the last one's is what its timing says.
    """
    return {stage: parts for stage in stages(lines) if (parts := _parts(lines, stage))}


def _parts(lines: Sequence[Line], stage: str) -> dict[str, float]:
    timings = [line for line in lines if line["stage"] == stage and line.get("kind") == "timing"]
    processes = _processes([line["seconds"] for line in updates(lines, stage) if "seconds" in line])
    ends = [seconds[-1] for seconds in processes]
    last = sum(line["wall_seconds"] for line in timings) if timings else sum(ends[-1:])
    wall = sum(ends[:-1]) + last
    names = dict.fromkeys(name for line in timings for name in line if name.endswith("_seconds"))
    parts = {
        name.removesuffix("_seconds"): sum(line.get(name, 0.0) for line in timings)
        for name in names
        if name != "wall_seconds"
    }
    unknown = processes[:-1] if "compile" in parts else processes
    start = min(_start(unknown, processes), max(0.0, wall - sum(parts.values())))
    parts = ({"start": start} if start > 0 else {}) | parts
    remainder = wall - sum(parts.values())
    return parts | ({"other": remainder} if remainder > 0 else {})


def _processes(seconds: Sequence[float]) -> list[list[float]]:
    """The seconds of a stage's updates by the process that did them."""
    processes: list[list[float]] = []
    for now in seconds:
        if not processes or now < processes[-1][-1]:
            processes.append([])
        processes[-1].append(now)
    return processes


def _start(begun: Sequence[Sequence[float]], processes: Sequence[Sequence[float]]) -> float:
    """Seconds of some processes to their first updates, each less the median of the seconds between
    two updates of any process.
    """
    usual = [
        statistics.median(b - a for a, b in itertools.pairwise(times))
        for times in processes
        if len(times) > 2
    ]
    if not usual:
        return 0.0
    return sum(max(0.0, times[0] - statistics.median(usual)) for times in begun)
