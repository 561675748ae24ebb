"""Writes a task's records with tensorflow-datasets, as array_record files; this module imports it,
so import it late.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from absl import logging

from rlhf_jax.tasks.corpora.record_store import DataSource

Record = dict[str, str]
tfds.disable_progress_bar()


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits of records whose fields are all text, in the order in which they are given."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[
        Any
    ] = {}  # nothing is downloaded; looking for a list of checksums would need importlib_resources

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Callable[[], Iterator[Record]]],
        fields: Sequence[str],
        data_dir: Path,
    ):
        self.name = name  # type: ignore[misc]
        self._splits = splits
        self._fields = fields
        super().__init__(data_dir=os.fspath(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {field: tfds.features.Text() for field in self._fields}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Record]]]:
        del dl_manager
        return {split: self._generate_examples(make()) for split, make in self._splits.items()}

    def _generate_examples(self, records: Iterator[Record]) -> Iterator[tuple[int, Record]]:
        yield from enumerate(records)

    def _log_download_bytes(self) -> None:
        """Logs nothing, because nothing is downloaded."""

    def _log_download_done(self) -> None:
        """Logs nothing."""


def build(builder: RecordsBuilder) -> None:
    """Writes the splits. Raises whatever a generator of records raises."""
    with _quiet():
        builder.download_and_prepare()


def data_source(directory: Path, name: str, split: str) -> DataSource:
    """Opens a split that `build` has written.

    Args:
      directory: that was built in.
      name: of the builder.
      split: its name.

    Returns:
      Records of bytes by index.
    """
    builder: Any = tfds.builder_from_directory(
        os.fspath(directory / name / str(RecordsBuilder.VERSION))
    )
    return builder.as_data_source(split)


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
