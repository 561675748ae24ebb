"""Keeps sampled rounds on disk, one file each by atomic rename, for as long as a checkpoint may
need them.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np

from rlhf_jax.clock import Clock
from rlhf_jax.devices import distributed
from rlhf_jax.records.checkpoints import Damaged
from rlhf_jax.types import Samples

FOLDER = "rounds"
"""The folder's name in a run directory."""
ARRAYS = tuple(f.name for f in fields(Samples) if f.name != "samples_per_prompt")


def path_of(directory: Path, round_index: int) -> Path:
    """The file of a round."""
    return directory / f"{round_index:08d}.npz"


class SavedRounds:
    """Files `directory/<round>.npz`."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, round_index: int) -> Path:
        return path_of(self.directory, round_index)

    def write(self, round_index: int, samples: Samples) -> None:
        """Saves a round, durably and atomically: a file is whole, or it does not exist.

        Collective; the first process writes.
        """
        arrays = distributed.fetch({name: getattr(samples, name) for name in ARRAYS})
        if not distributed.is_first():
            return
        partial = self.path(round_index).with_suffix(".partial")
        with open(partial, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                samples_per_prompt=np.int64(samples.samples_per_prompt),
                **arrays,
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path(round_index))

    def has(self, rounds: list[int]) -> bool:
        """True where all of these rounds are saved."""
        return all(self.path(r).exists() for r in rounds)

    def read(self, round_index: int, layout: Callable[[Samples], Samples]) -> Samples:
        """Reads a round.

        Args:
          round_index: of the round.
          layout: maps Samples to their shardings.

        Raises Damaged, naming the file, where it is missing, cut or changed: its members have
        checksums.
        """
        path = self.path(round_index)
        try:
            with open(path, "rb") as stream, np.load(stream) as file:
                arrays = {name: file[name] for name in ARRAYS}
                samples = Samples(samples_per_prompt=int(file["samples_per_prompt"]), **arrays)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise Damaged(f"{path} cannot be read: {error}") from error
        return distributed.feed(samples, layout(samples))

    def keep(self, rounds: Iterable[int]) -> None:
        """Removes every other round's file; of several processes the first does."""
        if not distributed.is_first():
            return
        names = {self.path(r).name for r in rounds}
        for path in self.directory.iterdir():
            if path.name not in names:
                path.unlink()

    def keep_for(self, clock: Clock, steps: Iterable[int], next_round: int) -> None:
        """Keeps the rounds that a run needs to go on from any checkpoint, and those from
        `next_round` on.

        With a bounded clock, all rounds after the oldest checkpoint's are kept: they are not sampled
        again.

        Args:
          clock: of the run.
          steps: of its checkpoints.
          next_round: the first round that is not trained on yet.
        """
        begins = [step // clock.updates_per_round for step in steps]
        if clock.bounded:
            self.keep(range(min([next_round, *begins]), clock.num_rounds))
            return
        needed = {r for begin in begins for r in clock.issued_before(begin)}
        self.keep(needed | set(range(next_round, clock.num_rounds)))
