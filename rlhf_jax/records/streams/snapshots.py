"""Snapshots of the sampling side of a run with in-flight updates, one file a round: the part of a
checkpoint beside its train states.

Of several processes each writes and removes a file of its own, without the others.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.records.saved_rounds import path_of, read_arrays, write_arrays
from rlhf_jax.refusal import Refusal

FOLDER = "stream"
"""The folder's name in a run directory."""
STATE = "stream"
"""The name of the clock's state among the arrays of a slice."""


def paths_of(directory: Path, round_index: int) -> list[Path]:
    """The files of a round: `<round>.npz`, or `<round>.<process>.npz` of each of several processes."""
    whole = path_of(directory, round_index)
    if not distributed.several():
        return [whole]
    return [whole.with_suffix(f".{process}.npz") for process in range(jax.process_count())]


class Snapshots:
    """The files `paths_of` in a directory.

    The sampling threads write; the trainer's removes what no checkpoint needs.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, round_index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves named arrays of this process, durably and atomically: a file is whole, or it does not
        exist.
        """
        write_arrays(paths_of(self.directory, round_index)[jax.process_index()], arrays)

    def read(self, round_index: int) -> dict[str, np.ndarray]:
        """The arrays of a round: all of this process, and of the others the states of their slices.

        Raises Damaged, naming the file, where one is missing, cut or changed, and Refusal for the
        files of another number of processes.
        """
        found: dict[str, np.ndarray] = {}
        paths = paths_of(self.directory, round_index)
        there = set(self.directory.glob(f"{paths[0].name.partition('.')[0]}.*npz"))
        if there - set(paths):
            raise Refusal(
                f"{min(there - set(paths))} is of a run on another number of processes than "
                f"{len(paths)}; resume with the processes of the run"
            )
        for process, path in enumerate(paths):
            arrays, is_mine = read_arrays(path), process == jax.process_index()
            found |= {n: x for n, x in arrays.items() if is_mine or n.endswith(f".{STATE}")}
        return found

    def _round_of(self, path: Path) -> int | None:
        """The round of a file of this process; None: another file."""
        number, _, rest = path.name.partition(".")
        mine = f"{jax.process_index()}." if distributed.several() else ""
        if not number.isdigit() or rest not in (f"{mine}npz", f"{mine}partial"):
            return None
        return int(number)

    def keep_for(self, rounds: Iterable[int], next_round: int) -> None:
        """Removes the files of rounds before `next_round` that are not in `rounds`.

        Args:
          rounds: before which a checkpoint was taken.
          next_round: the first round that is not trained on yet. Its file, and later ones, may be
            written at the same time.
        """
        kept = set(rounds)
        for path in self.directory.iterdir():
            round_index = self._round_of(path)
            if round_index is not None and round_index < next_round and round_index not in kept:
                path.unlink(missing_ok=True)

    def forget_after(self, round_index: int) -> None:
        """Removes the files of later rounds, and those that were never finished: a run that goes
        on from `round_index` may come to them with other rows.
        """
        for path in self.directory.iterdir():
            found = self._round_of(path)
            if found is not None and (found > round_index or path.suffix == ".partial"):
                path.unlink(missing_ok=True)
