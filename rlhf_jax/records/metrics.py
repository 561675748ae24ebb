"""Writes the metrics of a run: `metrics.jsonl`, and the same to its trackers.

`metrics.jsonl` of a run directory has one line

    an update       {"stage": "sft"|"reward_model"|"rlhf"|..., "update": 0-based, "seconds": since its start, figures}
    an evaluation   {"stage": "evaluate", "of": stage, "update": version evaluated, "seconds": ..., figures}
    a stage's end   {"stage": stage, "kind": "timing", figures in seconds}

Figures are numbers; `report/plots/panels.py` says which ones a report draws, and in which unit. The
standard error of an evaluation's figure `x` stands beside it as `x_stderr` (over prompts: the
samples of one prompt are not independent). Timings: "wall_seconds" is the stage's whole time on the
wall; any other "<part>_seconds" ("compile_seconds", "generate_seconds", ...) is a part of it.
`jsonl.py` says how numbers that are not finite are written.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf_jax.devices import distributed
from rlhf_jax.records import jsonl, notes
from rlhf_jax.records.jsonl import Line, cut_back, read
from rlhf_jax.records.lines import iterate
from rlhf_jax.records.trackers.api import EVALUATIONS, Tracker, series_of
from rlhf_jax.refusal import Refusal

__all__ = ["MetricsWriter", "cut_back", "read"]

FILE = "metrics.jsonl"
RESERVED = frozenset({"stage", "update", "seconds", "of", "kind"})
Openers = Mapping[str, Callable[[], Tracker]]
"""A function that opens each tracker, by its name."""


class MetricsWriter:
    """Appends figures to `directory/metrics.jsonl` and shows them to the trackers of the run.

    `metrics.jsonl` is the record. A tracker that fails is told in one line, and the process goes on
    without it; when the run is resumed it is told again what the file has.
    """

    def __init__(
        self, directory: str | os.PathLike[str], openers: Callable[[], Openers] = dict
    ) -> None:
        """Makes the directory where it is missing; a torn last line of an earlier process is
        removed.

        Args:
          directory: of the run.
          openers: gives the run's trackers; called when the first figures are written.
        """
        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.drop_torn_line(self.path)
        self._openers = openers
        self._opened: dict[str, Tracker] | None = None

    def write(
        self,
        stage: str,
        step: int,
        values: Mapping[str, Any],
        seconds: float | None = None,
        of: str | None = None,
    ) -> None:
        """Appends one line of an update, or of an evaluation.

        Args:
          stage: of the update; "evaluate" for an evaluation.
          step: the update; of an evaluation, the version that was evaluated.
          values: scalars (Python, numpy, JAX) by name.
          seconds: since the stage began.
          of: the stage that was evaluated.

        Raises Refusal for a metric named like a field of the line; OSError.
        """
        taken = RESERVED & values.keys()
        if taken:
            raise Refusal(
                f"figures of stage {stage!r} may not be named {sorted(taken)}: fields of the line"
            )
        if (stage == "evaluate") != (of is not None):
            raise Refusal(
                f"stage {stage!r} with of={of!r}: an evaluation says what it is of, and nothing "
                "else does"
            )
        line: Line = {"stage": stage} | ({} if of is None else {"of": of}) | {"update": int(step)}
        if seconds is not None:
            line["seconds"] = jsonl.number(seconds)
        line |= {name: jsonl.number(value) for name, value in values.items()}
        jsonl.append(self.path, line)
        self._show(line)

    def write_timing(self, stage: str, values: Mapping[str, Any]) -> None:
        """The line of a stage that has ended; names end in `_seconds`, "wall_seconds" is the whole,
        or in `_programs`.
        """
        wrong = [name for name in values if not name.endswith(("_seconds", "_programs"))]
        if wrong:
            raise Refusal(
                f"timings of stage {stage!r} are in seconds, or count programs, and are named so, "
                f"not {wrong}"
            )
        timings = {name: jsonl.number(value) for name, value in values.items()}
        jsonl.append(self.path, {"stage": stage, "kind": "timing"} | timings)

    def resume(
        self,
        stage: str,
        update: int,
        evaluations_from: int | None = None,
        aside: Path | None = None,
    ) -> None:
        """Cuts `metrics.jsonl` back and tells the trackers what is left of the stage. A note says
        where the lines of the last updates before the version are missing.

        The arguments are those of `jsonl.cut_back`.
        """
        last = jsonl.cut_back(self.path, stage, update, evaluations_from, aside)
        notes.say_cut(self.path, stage, last, update)
        for name, tracker in self._trackers().items():
            with self._kept_going(name, f"the stage {stage}"):
                tracker.restart(stage)
                tracker.restart(series_of(EVALUATIONS, stage))
        for line in iterate(self.path) if self._opened and self.path.exists() else ():
            if "update" in line and stage in (line["stage"], line.get("of")):
                self._show(line)

    def close(self) -> None:
        """Has the trackers write out what they hold. Lines of `metrics.jsonl` are never held."""
        for name, tracker in (self._opened or {}).copy().items():
            with self._kept_going(name, "its end"):
                tracker.close()
        self._opened = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _trackers(self) -> dict[str, Tracker]:
        """The trackers that have not failed, by name; a copy."""
        if self._opened is None:
            self._opened = {}
            for name, make in self._openers().items() if distributed.writes() else ():
                with self._kept_going(name, "its start"):
                    self._opened[name] = make()
        return dict(self._opened)

    def _show(self, line: Line) -> None:
        series = series_of(line["stage"], line.get("of"))
        figures = {name: float(value) for name, value in line.items() if name not in RESERVED}
        seconds = line.get("seconds")
        for name, tracker in self._trackers().items():
            with self._kept_going(name, f"{series} {line['update']}"):
                tracker.log(
                    series, line["update"], figures, None if seconds is None else float(seconds)
                )

    @contextlib.contextmanager
    def _kept_going(self, name: str, when: str) -> Iterator[None]:
        """Context manager that drops the tracker whose call raises: a network or a disk of a
        tracker must not end a run.
        """
        try:
            yield
        except Exception as error:
            assert self._opened is not None
            self._opened.pop(name, None)
            notes.say(
                f"the tracker {name} failed at {when} and is left out from here on "
                f"({type(error).__name__}: {error}); {FILE} has every figure"
            )
