"""TensorBoard: events in `tensorboard/<series>/` of a run, with the tags `stage/figure`.

A TensorBoard run is a series, which has steps of its own and is cut back on its own. When a run goes
on, the lines of `metrics.jsonl` are compared with the event files: lines that these have are not
written again. The first line that they lack, or have with other figures, ends the comparison. Events
from that step on are dropped, as TensorBoard does at the start of a session, and lines are written
from there on. So nothing is lost where a kill came between a line and its event.

The identity of the run is a table on the page "Text", and its settings are hyperparameters on the
page "HParams".
"""

import contextlib
import math
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlhf_jax.extras import needed
from rlhf_jax.records.trackers.api import EVALUATIONS, Identity

FOLDER = "tensorboard"
NEEDS = "track='tensorboard'"


class _EventsWriter(Protocol):
    """The writer of one TensorBoard run: `tensorboardX`'s EventsWriter."""

    def write_event(self, event: object) -> object: ...

    def flush(self) -> object: ...

    def close(self) -> object: ...


class _Summary(Protocol):
    """Figures of an event: `tensorboardX`'s Summary, a class that is made at its import."""

    def SerializeToString(self) -> bytes: ...


class _Event(Protocol):
    """An event of a file: `tensorboardX`'s Event, likewise."""

    @property
    def step(self) -> int: ...

    @property
    def summary(self) -> _Summary: ...

    def HasField(self, name: str) -> bool: ...


@dataclass
class _Written:
    """The lines of a series in its event files, read as they are asked for, oldest first.

    A line is its step and its figures as bytes, which are equal where the figures are.
    """

    lines: Iterator[tuple[int, bytes]]
    step: int = -1  # of the last line that was found there
    of_step: list[bytes] = field(default_factory=list)  # the lines of that step
    left: tuple[int, bytes] | None = None  # the next line; None past the last one

    def __post_init__(self) -> None:
        self.left = next(self.lines, None)

    def has(self, step: int, figures: bytes) -> bool:
        """True where the next line is this one, which is then passed."""
        if self.left != (step, figures):
            return False
        if step != self.step:
            self.step, self.of_step = step, []
        self.of_step.append(figures)
        self.left = next(self.lines, None)
        return True


class TensorBoard:
    """Writes TensorBoard's event files; nothing needs TensorFlow for it."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        """Writes the identity of a start."""
        self._directory = directory / FOLDER
        self._writers: dict[str, _EventsWriter] = {}
        self._written: dict[str, _Written] = {}
        self._write_identity(identity)

    def log(
        self, series: str, step: int, figures: Mapping[str, float], seconds: float | None
    ) -> None:
        """See `api.Tracker`. The step is on the disk when this returns."""
        del seconds  # events have the time of day
        stage = EVALUATIONS if series.startswith(f"{EVALUATIONS}_") else series
        scalars = _scalars({f"{stage}/{name}": value for name, value in figures.items()})
        written = self._written.get(series)
        if written is not None:
            if written.has(step, scalars.SerializeToString()):
                return
            self._drop_left(series, step)
        writer = self._writers.get(series) or self._open(series)
        writer.write_event(_event(step=step, summary=scalars))
        writer.flush()

    def restart(self, series: str) -> None:
        """See `api.Tracker`. Lines that are told again and that the event files have are left out."""
        if writer := self._writers.pop(series, None):
            writer.close()
        self._written[series] = _Written(_lines(self._directory / series))

    def close(self) -> None:
        """See `api.Tracker`. Events that were not told again are dropped."""
        for series in list(self._written):
            self._drop_left(series, math.inf)
        for writer in self._writers.values():
            writer.close()

    def _drop_left(self, series: str, step: float) -> None:
        """Has TensorBoard drop the events that were not told again, before the line of a step; inf:
        no line follows.
        """
        written = self._written.pop(series)
        if written.left is None:
            return
        with needed("track", NEEDS), _without_torch():
            from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made at import)
            from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (made at import)
        first, writer = int(min(step, written.left[0])), self._open(series)
        writer.write_event(_event(step=first, session_log=SessionLog(status=SessionLog.START)))
        # Lines of this step that were told again are dropped with the others.
        for figures in written.of_step if written.step >= first else ():
            writer.write_event(_event(step=written.step, summary=Summary.FromString(figures)))
        writer.flush()

    def _open(self, series: str) -> _EventsWriter:
        if series in self._writers:
            self._writers[series].close()
        self._writers[series] = _writer(self._directory / series)
        return self._writers[series]

    def _write_identity(self, identity: Identity) -> None:
        """A run of its own, `tensorboard/` itself, has one step for every start."""
        with needed("track", NEEDS), _without_torch():
            from tensorboardX.summary import hparams, text
        starts = len(list(self._directory.glob("events*")))
        writer = _writer(self._directory)
        rows = [
            f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in identity.rows()
        ]
        table = "\n".join(["| | |", "| --- | --- |", *rows])
        writer.write_event(_event(step=starts, summary=text("run", table)))
        if not starts:
            plain = (bool, int, float, str)
            settings = {
                name: value if isinstance(value, plain) else str(value)
                for name, value in identity.settings.items()
            }
            for summary in hparams(settings, {}):
                writer.write_event(_event(summary=summary))
        writer.close()


def make(directory: Path, identity: Identity) -> TensorBoard:
    """The TensorBoard events of a run.

    Args:
      directory: of the run.
      identity: of the run.
    """
    return TensorBoard(directory, identity)


def check() -> None:
    """Raises Refusal where `tensorboardX` is not installed."""
    with needed("track", NEEDS), _without_torch():
        import tensorboardX  # noqa: F401


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Keeps torch out of imports of `tensorboardX`.

    It imports torch where that is installed, for tensors that nobody gives it here. That takes 2 to
    3 seconds of every run, and `tensorboardX` does without it.
    """
    hidden = "torch" not in sys.modules and "tensorboardX" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now fails
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _writer(directory: Path) -> _EventsWriter:
    with needed("track", NEEDS), _without_torch():
        # Not its FileWriter: that one's queue and thread, interrupted by Ctrl-C, never let the
        # process end.
        from tensorboardX.event_file_writer import EventsWriter

    directory.mkdir(parents=True, exist_ok=True)
    # Its file names count seconds: without a place of its own a second writer would overwrite the
    # first one's file.
    suffix = f".{len(list(directory.iterdir())):04d}"
    return EventsWriter(str(directory / "events"), suffix)


def _event(**fields: object) -> object:
    with needed("track", NEEDS), _without_torch():
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    return Event(wall_time=time.time(), **fields)


def _lines(directory: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a series that TensorBoard shows, by its event files: step, and figures as bytes.

    A start of a session, which is before the figures of its file, drops those of earlier files from
    its step on.
    """
    files = sorted(directory.glob("events*"))
    ends = [_session_step(file) for file in files]
    for index, file in enumerate(files):
        end = min(ends[index + 1 :], default=math.inf)
        for event in _events(file):
            if event.HasField("summary") and event.step < end:
                yield event.step, event.summary.SerializeToString()


def _session_step(file: Path) -> float:
    """The step from which the session of a file drops earlier ones; inf: it drops none."""
    for event in _events(file):
        if event.HasField("session_log"):
            return event.step
        if event.HasField("summary"):
            break
    return math.inf


def _events(file: Path) -> Iterator[_Event]:
    """The events of a file up to a torn or damaged record: length, its checksum, data, and theirs.
    The checksum of data is not compared: it takes too long in Python.
    """
    with needed("track", NEEDS), _without_torch():
        from google.protobuf.message import DecodeError
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] (made at import)
        from tensorboardX.record_writer import masked_crc32c
    with file.open("rb") as records:
        while len(head := records.read(12)) == 12:
            length, checksum = struct.unpack("<QI", head)
            if checksum != masked_crc32c(head[:8]):
                return
            if len(data := records.read(length + 4)) < length + 4:
                return
            try:
                event = Event.FromString(data[:-4])
            except DecodeError:
                return
            yield event


def _scalars(values: Mapping[str, float]) -> _Summary:
    with needed("track", NEEDS), _without_torch():
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    return Summary(
        value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    )
