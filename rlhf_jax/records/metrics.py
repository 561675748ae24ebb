"""Writes the metrics of a run: `metrics.jsonl`, and the same as TensorBoard events.

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

import functools
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rlhf_jax.devices import distributed
from rlhf_jax.records import jsonl, notes
from rlhf_jax.records.jsonl import Line, cut_back, read
from rlhf_jax.refusal import Refusal

__all__ = ["MetricsWriter", "cut_back", "read"]

FILE = "metrics.jsonl"
RESERVED = frozenset({"stage", "update", "seconds", "of", "kind"})


class _EventsWriter(Protocol):
    """The writer of one TensorBoard run: `tensorboardX`'s EventsWriter."""

    def write_event(self, event: object) -> object: ...

    def flush(self) -> object: ...

    def close(self) -> object: ...


class MetricsWriter:
    """Appends figures to `directory/metrics.jsonl` and to `directory/tensorboard/<run>/` with the
    tags `stage/figure`.

    A TensorBoard run is a stage, or the evaluations of one ("evaluate_rlhf"): each has steps of its
    own and is cut back on its own. `metrics.jsonl` is the record; what TensorBoard lost in a kill,
    `resume` writes again from it. Events are written where `tensorboardX` is installed.
    """

    def __init__(self, directory: str | os.PathLike[str], tensorboard: bool = True) -> None:
        """Makes the directory where it is missing; a torn last line of an earlier process is
        removed.
        """
        self.path = Path(directory) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.drop_torn_line(self.path)
        wanted = tensorboard and distributed.writes() and has_events()
        self._events: dict[str, _EventsWriter] | None = {} if wanted else None

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
        self._add_events(line)

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
    ) -> set[int]:
        """Cuts `metrics.jsonl` back and shows TensorBoard exactly what is left of the stage.

        Returns as `jsonl.cut_back`.
        """
        updates_left = jsonl.cut_back(self.path, stage, update, evaluations_from, aside)
        if self._events is None:
            return updates_left
        _events_module()  # here, and not in the middle of the stage's first round
        if not self.path.exists():
            return updates_left
        for run in (stage, f"evaluate_{stage}"):
            if (self.path.parent / "tensorboard" / run).exists():
                self._open_events(run, purge=True)
        for line in read(self.path):
            if "update" in line and stage in (line["stage"], line.get("of")):
                self._add_events(line)
        return updates_left

    def close(self) -> None:
        """Writes out what TensorBoard's writers hold. Lines of `metrics.jsonl` are never held."""
        for writer in (self._events or {}).values():
            writer.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_events(self, run: str, purge: bool = False) -> _EventsWriter:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made at import)

        assert self._events is not None
        directory = self.path.parent / "tensorboard" / run
        directory.mkdir(parents=True, exist_ok=True)
        # Its file names count seconds: without a place of its own a second writer would overwrite
        # the first one's file.
        suffix = f".{len(list(directory.iterdir())):04d}"
        if run in self._events:
            self._events[run].close()
        # Not its FileWriter: that one's queue and thread, interrupted by Ctrl-C, never let the
        # process end.
        writer = EventsWriter(str(directory / "events"), suffix)
        if purge:  # TensorBoard drops the steps from 0 on that it read in earlier files
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(wall_time=time.time(), step=0, session_log=start))
        self._events[run] = writer
        return writer

    def _add_events(self, line: Line) -> None:
        if self._events is None:
            return
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] (made at import)
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (made at import)

        stage, of = line["stage"], line.get("of")
        run = stage if of is None else f"{stage}_{of}"
        writer = self._events.get(run) or self._open_events(run)
        values = [
            Summary.Value(tag=f"{stage}/{name}", simple_value=float(value))
            for name, value in line.items()
            if name not in RESERVED
        ]
        writer.write_event(
            Event(wall_time=time.time(), step=line["update"], summary=Summary(value=values))
        )
        writer.flush()


@functools.cache
def has_events() -> bool:
    """True where `tensorboardX`, of the extra `track`, is installed.

    Prints a line, once per process, where it is not.
    """
    is_installed = importlib.util.find_spec("tensorboardX") is not None
    if not is_installed:
        notes.say(f"no TensorBoard events, only {FILE}; for both: pip install 'rlhf_jax[track]'")
    return is_installed


def _events_module() -> None:
    """Imports what writes TensorBoard's files: a fifth of a second, or seconds on a busy disk, and
    only where it is used.
    """
    import tensorboardX.event_file_writer
    import tensorboardX.proto.event_pb2  # noqa: F401
