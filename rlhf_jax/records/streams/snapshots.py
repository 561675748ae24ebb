"""Snapshots of the sampling side of a run with in-flight updates, one file a round: the part of a
checkpoint beside its train states.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from rlhf_jax.records.saved_rounds import path_of, read_arrays, write_arrays

FOLDER = "stream"
"""The folder's name in a run directory."""


class Snapshots:
    """Files `directory/<round>.npz`, each of the boundary at which the clock reaches the round.

    The sampling thread writes; the trainer's removes what no checkpoint needs.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, round_index: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves named arrays, durably and atomically: a file is whole, or it does not exist."""
        write_arrays(path_of(self.directory, round_index), arrays)

    def read(self, round_index: int) -> dict[str, np.ndarray]:
        """The arrays of a round. Raises Damaged, naming the file, where it is missing, cut or
        changed.
        """
        return read_arrays(path_of(self.directory, round_index))

    def keep_for(self, rounds: Iterable[int], next_round: int) -> None:
        """Removes the files of rounds before `next_round` that are not in `rounds`.

        Args:
          rounds: before which a checkpoint was taken.
          next_round: the first round that is not trained on yet. Its file, and later ones, may be
            written at the same time.
        """
        kept = set(rounds)
        for path in self.directory.iterdir():
            if path.stem.isdigit() and int(path.stem) < next_round and int(path.stem) not in kept:
                path.unlink(missing_ok=True)

    def forget_after(self, round_index: int) -> None:
        """Removes the files of later rounds, and those that were never finished: a run that goes
        on from `round_index` may come to them with other rows.
        """
        for path in self.directory.iterdir():
            if path.stem.isdigit() and (int(path.stem) > round_index or path.suffix == ".partial"):
                path.unlink(missing_ok=True)
