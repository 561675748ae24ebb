"""Interface of a tracker, and the identity of a run that each tracker is given.

A tracker is a file here, or a user's own module or file (`registry.py`), with

    make(directory, identity) -> Tracker    opens the run of a directory there, or goes on with it
    check() -> None                         optional; raises Refusal where it cannot be used here

`metrics.jsonl` is the record, and a tracker shows it. An exception of a tracker is told in one line
and the run goes on without it (`records/metrics.py`), so that it may raise whatever it meets.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

EVALUATIONS = "evaluate"


@dataclass(frozen=True)
class Identity:
    """The identity of a run: what a reader must know to repeat it."""

    name: str  # of the directory
    settings: Mapping[str, Any]  # the resolved config, keys joined by dots
    # command, commit, date, host, and environment (versions, devices) of this start: `starts.py`
    start: Mapping[str, Any]
    # of the settings that enter the numbers: with another digest it is another run
    digest: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values as texts, the start first; nested names are joined by dots."""
        return [
            (name, _text(value)) for name, value in (*_leaves(self.start), *_leaves(self.settings))
        ]


class Tracker(Protocol):
    """A place that shows figures. A series is a stage, or the evaluations of one
    ("evaluate_rlhf"); each has steps of its own.
    """

    def log(
        self, series: str, step: int, figures: Mapping[str, float], seconds: float | None
    ) -> None:
        """Shows the figures of a step.

        Args:
          series: of the step.
          step: an update; of an evaluation, the version that was evaluated. Several lines may have
            one step.
          figures: by name.
          seconds: since the stage began; None where it is not known.
        """
        ...

    def restart(self, series: str) -> None:
        """Prepares for a series that is told again from its first step on, as a resumed run does."""
        ...

    def close(self) -> None:
        """Writes out what is held."""
        ...


def series_of(stage: str, of: str | None) -> str:
    """The series of a line of `metrics.jsonl`.

    Args:
      stage: of the line.
      of: the stage that was evaluated; None for an update.
    """
    return stage if of is None else f"{stage}_{of}"


def _leaves(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", value))
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
