"""The safetensors files of a checkpoint folder: which tensor is in which file, and one line on what
is wrong with them.

A folder holds `model.safetensors`, or shards and `model.safetensors.index.json`. The header of a
safetensors file names each tensor's dtype, shape and offset, so that a slice is read without the
rest of its file.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlhf_jax.extras import needed
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.text import json_texts

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
ADAPTER = "adapter_config.json"
CONVERT = "convert it: transformers' save_pretrained writes safetensors files"


class TensorSlice(Protocol):
    """A tensor of a safetensors file, read from the disk where it is indexed."""

    def get_dtype(self) -> str: ...

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: slice | tuple[slice, ...], /) -> np.ndarray: ...


class TensorFile(Protocol):
    """An opened safetensors file."""

    def keys(self) -> list[str]: ...

    def get_slice(self, name: str, /) -> TensorSlice: ...


class WeightFiles:
    """The opened safetensors files of a folder. No tensor is read before it is asked for.

    Raises Refusal, naming the file and a remedy, for what is missing or broken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, TensorFile] = {}
        self.map = self._map()

    def _map(self) -> dict[str, Path]:
        """The file of every tensor: of the shards where there is an index, and otherwise of the
        single file.
        """
        shards = self._shards() if (self.folder / INDEX).exists() else None
        single = self.folder / SINGLE
        if single.exists():
            # transformers reads the single file where there is one; other libraries read the
            # shards.
            others = sorted(
                {file.name for file in (shards or {}).values() if file != single and file.exists()}
            )
            if others:
                raise Refusal(
                    f"{self.folder} holds two sets of weights, {SINGLE} and the shards of {INDEX} "
                    f"({_some(others)}): delete "
                    "the older of them"
                )
            return dict.fromkeys(self.names(single), single)
        if shards is None:
            raise Refusal(self._no_weights())
        return self._checked(shards)

    def _shards(self) -> dict[str, Path]:
        entries = read_json(self.folder / INDEX).get("weight_map")
        if (
            not isinstance(entries, dict)
            or not entries
            or not all(isinstance(file, str) for file in entries.values())
        ):
            raise Refusal(
                f"{self.folder / INDEX} has no weight_map of file names: download it again"
            )
        return {name: self.folder / file for name, file in entries.items()}

    def _checked(self, shards: Mapping[str, Path]) -> dict[str, Path]:
        """The file of every tensor that the shards hold, which the index must agree with."""
        file_of: dict[str, Path] = {}
        for file in dict.fromkeys(shards.values()):
            for name in self.names(file):
                if name in file_of:
                    raise Refusal(
                        f"{file_of[name]} and {file} both hold the tensor {name!r}: download the "
                        "folder again"
                    )
                file_of[name] = file
        for name, file in shards.items():
            if file_of.get(name) != file:
                raise Refusal(
                    f"{file} lacks the tensor {name!r} that {INDEX} puts there: download it again"
                )
        return file_of

    def _no_weights(self) -> str:
        missing = f"{self.folder / SINGLE} is missing"
        names = sorted(file.name for file in self.folder.iterdir())
        for suffixes in (
            (".bin", ".pt", ".pth"),
            (".gguf",),
            (".h5", ".msgpack"),
            (".safetensors",),
        ):
            others = [
                name
                for name in names
                if name.endswith(suffixes) and not name.startswith(("training_args", "optimizer"))
            ]
            if others and suffixes == (".safetensors",):
                return f"{missing}, and so is {INDEX} for {_some(others)}: download the folder's missing files"
            if others:
                return f"{missing}; there is {_some(others)}, which is not read: {CONVERT}"
        return f"{missing}: download the folder's safetensors files"

    def file(self, file: Path) -> TensorFile:
        """An opened safetensors file."""
        if file.name not in self._open:
            if not file.exists():
                broken = "; it is a link to a file that is gone" if file.is_symlink() else ""
                raise Refusal(f"{file} is missing{broken}: download the folder's safetensors files")
            with needed("hub", str(file)):
                library = import_module("safetensors")
            try:
                self._open[file.name] = library.safe_open(str(file), framework="numpy")
            except library.SafetensorError as error:
                if _starts_with(file, b"version https://git-lfs"):
                    raise Refusal(
                        f"{file} is a pointer of Git LFS and holds no tensors: run `git lfs pull`"
                    ) from None
                raise Refusal(
                    f"{file} is not a whole safetensors file ({error}): download it again"
                ) from None
        return self._open[file.name]

    def names(self, file: Path) -> Iterable[str]:
        """The tensors of a file."""
        return self.file(file).keys()

    def slice(self, name: str) -> TensorSlice:
        """A tensor that is read where it is indexed.

        Raises Refusal for what holds no floating point numbers.
        """
        tensor = self.file(self.map[name]).get_slice(name)
        if tensor.get_dtype() not in FLOATS:
            raise Refusal(
                f"{self.map[name]}: {name!r} has dtype {tensor.get_dtype()}; accepted: "
                f"{', '.join(FLOATS)}: a quantised folder "
                "is to be dequantised first"
            )
        return tensor


def check_folder(path: Path) -> None:
    """Raises Refusal, with a remedy, for a path that is no checkpoint folder: a file, an adapter, a
    hub's cache.
    """
    if path.is_file():
        raise Refusal(
            f"{str(path)!r} is a file, and no checkpoint folder; accepted: its folder, "
            f"{str(path.parent)!r}"
        )
    if not path.is_dir():
        expanded = path.expanduser()
        hint = (
            f"; it is there as {str(expanded)!r}" if expanded != path and expanded.is_dir() else ""
        )
        if not path.is_absolute() and len(path.parts) == 2:
            hint = (
                hint
                or f"; a model of the hub is downloaded first: hf download {path} --local-dir "
                "FOLDER"
            )
        raise Refusal(
            f"no checkpoint folder {str(path)!r}; it should hold config.json and {SINGLE} or "
            f"{INDEX}{hint}"
        )
    if (path / ADAPTER).exists():
        base = read_json(path / ADAPTER).get("base_model_name_or_path")
        also = (
            ", or delete the file if the weights beside it hold the adapter already"
            if (path / SINGLE).exists()
            else ""
        )
        raise Refusal(
            f"{path} holds an adapter ({ADAPTER}), no whole model: merge it into its base {base!r} "
            "first (peft's "
            f"merge_and_unload, then save_pretrained){also}"
        )
    snapshots = sorted(str(found) for found in (path / "snapshots").glob("*") if found.is_dir())
    if snapshots and not (path / "config.json").exists():
        raise Refusal(
            f"{path} is a folder of the hub's cache; accepted: one of its snapshots: "
            f"{_some(snapshots)}"
        )


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object of a checkpoint folder. Raises Refusal naming the file."""
    if not file.exists():
        raise MissingInput(f"{file} is missing: this is no checkpoint folder, or only part of one")
    return json_texts.read_object(file)


def _starts_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(start)) == start


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
