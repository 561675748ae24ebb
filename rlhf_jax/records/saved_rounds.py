"""Keeps sampled rounds on disk, one file each by atomic rename, for as long as a checkpoint may
need them.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays, durably and atomically: the file is whole, or it does not exist."""
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises Damaged, naming it, where it is missing, cut or changed: its
    members have checksums.
    """
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


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
        of_prompt = {"samples_per_prompt": np.array(samples.samples_per_prompt, np.int64)}
        write_arrays(self.path(round_index), of_prompt | arrays)

    def has(self, rounds: list[int]) -> bool:
        """True where all of these rounds are saved."""
        return all(self.path(r).exists() for r in rounds)

    def read(self, round_index: int, layout: Callable[[Samples], Samples]) -> Samples:
        """Reads a round.

        Args:
          round_index: of the round.
          layout: maps Samples to their shardings.

        Raises Damaged, naming the file, where it is missing, cut or changed.
        """
        path = self.path(round_index)
        read = read_arrays(path)
        try:
            arrays: dict[str, Any] = {
                name: read[name] for name in ARRAYS if name in read or name != "version_BC"
            }
            if "version_BC" not in arrays:  # until 0.2 a round had one version, a scalar
                arrays["version_BC"] = np.where(read["mask_BC"], np.int32(read["version"]), 0)
            samples = Samples(samples_per_prompt=int(read["samples_per_prompt"]), **arrays)
        except (ValueError, KeyError) as error:
            raise Damaged(f"{path} cannot be read: {error}") from error
        return distributed.feed(samples, layout(samples))

    def keep_for(self, clock: Clock, steps: Iterable[int], next_round: int) -> None:
        """Removes the files of rounds that no checkpoint needs, and that are trained on; of several
        processes the first does.

        A checkpoint needs the rounds that were sampled by its version and are trained on after it,
        also those that were trained on before it, where a round may be trained on several times.
        With a bounded clock these are at most `lag` + 1, and a resumed run does not sample them
        again.

        Args:
          clock: of the run.
          steps: of its checkpoints, those that are being written or removed included.
          next_round: the first round that is not trained on yet. Later checkpoints need none before
            its window.
        """
        if not distributed.is_first():
            return
        needed: set[int] = set()
        for begin in {step // clock.updates_per_round for step in steps}:
            following = range(begin, begin + clock.lag + 1)
            needed.update(following if clock.bounded else clock.issued_before(begin))
        kept, first = {self.path(r).name for r in needed}, clock.window(next_round).start
        for path in self.directory.iterdir():
            is_round = path.suffix == ".npz" and path.stem.isdigit()
            if path.name not in kept and not (is_round and int(path.stem) >= first):
                path.unlink()
