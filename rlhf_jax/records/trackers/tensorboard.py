"""TensorBoard: events in `tensorboard/<series>/` of a run, with the tags `stage/figure`.

A TensorBoard run is a series, which has steps of its own and is cut back on its own. What a kill
lost is written again from `metrics.jsonl` when the run goes on. The identity of the run is a table
on the page "Text", and its settings are hyperparameters on the page "HParams".
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
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


class TensorBoard:
    """Writes TensorBoard's event files; nothing needs TensorFlow for it."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        """Writes the identity of a start."""
        self._directory = directory / FOLDER
        self._writers: dict[str, _EventsWriter] = {}
        self._write_identity(identity)

    def log(
        self, series: str, step: int, figures: Mapping[str, float], seconds: float | None
    ) -> None:
        """See `api.Tracker`. The step is on the disk when this returns."""
        del seconds  # events have the time of day
        stage = EVALUATIONS if series.startswith(f"{EVALUATIONS}_") else series
        writer = self._writers.get(series) or self._open(series)
        tagged = {f"{stage}/{name}": value for name, value in figures.items()}
        writer.write_event(_event(step=step, summary=_scalars(tagged)))
        writer.flush()

    def restart(self, series: str) -> None:
        """See `api.Tracker`. TensorBoard drops the steps that it read in earlier files."""
        if (self._directory / series).exists():
            with needed("track", NEEDS), _without_torch():
                from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made at import)
            start = SessionLog(status=SessionLog.START)
            self._open(series).write_event(_event(step=0, session_log=start))

    def close(self) -> None:
        """See `api.Tracker`."""
        for writer in self._writers.values():
            writer.close()

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


def _scalars(values: Mapping[str, float]) -> object:
    with needed("track", NEEDS), _without_torch():
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (made at import)
    return Summary(
        value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    )
