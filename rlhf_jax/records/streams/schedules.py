"""The schedule of a run with in-flight updates or pinned rows, a line for each boundary in
`schedule.jsonl`: its version, which rows were admitted and which have ended. In flight that version
drew all tokens of the segment; pinned rows have that of their round.

    {"stage": "rlhf", "boundary": 7, "version": 4, "rebuilt": false, "rows": [24, 25], "slots": [1, 5], "ended": [20]}

With several sampler slices each of them has a line for a boundary, in order, which also has "slice".
The version at a boundary is the same in all slices. Of several processes each writes the lines of its
own slices, the first to `schedule.jsonl`, process 1 to `schedule.1.jsonl`. The first boundary of each
version is all that a replay needs.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rlhf_jax.clock import Boundary, Clock
from rlhf_jax.devices import distributed
from rlhf_jax.records import jsonl
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.refusal import MissingInput, Refusal

FILE = "schedule.jsonl"


def path_of(directory: Path) -> Path:
    """The file of this process in a run directory."""
    process = jax.process_index()
    return directory / (f"schedule.{process}.jsonl" if process else FILE)


def append(path: Path, added: Mapping[str, Any]) -> None:
    """Appends a line to the file of this process.

    Args:
      path: as `path_of` gives it.
      added: as `line` gives it.
    """
    with distributed.own_file():
        jsonl.append(path, added)


def line(
    boundary: Boundary, ended: Sequence[int], slice_index: int | None = None
) -> dict[str, Any]:
    """The line of a boundary.

    Args:
      boundary: as the clock decided it.
      ended: rows that ended in its segment.
      slice_index: of the slice; None: there is one.
    """
    of_slice = {} if slice_index is None else {"slice": slice_index}
    return of_slice | {
        "stage": STAGE,
        "boundary": boundary.index,
        "version": boundary.version,
        "rebuilt": boundary.rebuilds,
        "rows": list(boundary.rows),
        "slots": list(boundary.slots),
        "ended": list(ended),
    }


def cut_back(path: Path, boundary: int) -> None:
    """Removes the lines from `boundary` on, and a torn last line.

    Args:
      path: of the file of this process; a missing one stays missing.
      boundary: that comes next.
    """
    if not path.exists():
        return
    with distributed.own_file():
        jsonl.drop_torn_line(path)
        kept = [each for each in jsonl.read(path) if each["boundary"] < boundary]
        jsonl.replace(path, "".join(json.dumps(each) + "\n" for each in kept).encode())


def boundaries(path: Path, clock: Clock) -> tuple[int, ...]:
    """`Stream.trained_boundaries` that repeat the run: for each round the first boundary that saw
    it trained; none for the rounds at the end that no boundary saw.

    Args:
      path: of the schedule; those of other processes are beside it.
      clock: of the run that repeats it.

    Raises MissingInput where there is no schedule, and Refusal for one whose versions are not of
    this clock.
    """
    if not path.exists():
        raise MissingInput(
            f"no schedule {path}: rlhf.replay_schedule_of names the directory of a run with "
            "rlhf.weights=inflight or rlhf.weights=pinned"
        )
    files = [path, *sorted(path.parent.glob(f"{path.stem}.*.jsonl"))]
    read, updates = [each for file in files for each in jsonl.read(file)], clock.updates_per_round
    read.sort(key=lambda each: each["boundary"])
    versions = [each["version"] for each in read]
    last = clock.num_updates - updates
    wrong = [v for v in versions if v % updates or not 0 <= v <= last]
    if wrong or versions != sorted(versions):
        listed = f"version {wrong[0]}" if wrong else "versions that fall"
        raise Refusal(
            f"{path} has {listed}; accepted: multiples of {updates} (updates a round) from 0 to "
            f"{last}, that never fall: give the replay the run's own total_prompts and minibatches"
        )
    seen = max(versions, default=0) // updates
    first = (bisect_left(versions, updates * (r + 1)) for r in range(seen))
    return tuple(read[index]["boundary"] for index in first)
