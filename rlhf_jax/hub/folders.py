"""Checkpoint folders as Hugging Face publishes them, read tensor by tensor into a sharding.

A folder holds `config.json` and `model.safetensors`, or several files and `model.safetensors.index.json`. Which tensor is which
param, and which key of the config is which number, is said by `hub/layouts.py`. Formats: the safetensors header names each
tensor's dtype, shape and place, so that a slice is read without the rest of its file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.hub import layouts
from rlhf_jax.models.api import Model
from rlhf_jax.models.value_head import ValueModel
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Params

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SCORE = "score.weight"  # the head of AutoModelForSequenceClassification, [1, D]
SCORE_BIAS = "score.bias"  # which some published reward models have all the same
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Folder:
    """An opened checkpoint folder. No tensor is read before it is asked for.

    Raises Refusal, naming the file, for what is missing or broken.
    """

    path: Path
    _open: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise Refusal(f"no checkpoint folder {str(self.path)!r}; it should hold {CONFIG} and {SINGLE} or {INDEX}")
        _ = self.model_config, self.weight_map

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""
        return read_json(self.path / CONFIG)

    @cached_property
    def _read(self) -> tuple[str, Any]:
        try:
            return layouts.read_config(self.config)
        except ValueError as error:
            raise Refusal(f"{self.path / CONFIG}: {error}") from None

    @property
    def family(self) -> str:
        """The file of `models/` that has this architecture."""
        return self._read[0]

    @property
    def model_config(self) -> Any:
        """The family's Config; its dtype is float32."""
        return self._read[1]

    @cached_property
    def weight_map(self) -> dict[str, Path]:
        """The file of every tensor."""
        if (self.path / INDEX).exists():
            entries = read_json(self.path / INDEX).get("weight_map")
            if not isinstance(entries, dict) or not entries:
                raise Refusal(f"{self.path / INDEX} has no weight_map: download it again")
            files = {name: self.path / file for name, file in entries.items()}
            for name, file in files.items():
                if name not in self._file(file).keys():  # noqa: SIM118 - a file of tensors, no dict
                    raise Refusal(f"{file} lacks the tensor {name!r} that {INDEX} puts there: download it again")
            return files
        return dict.fromkeys(self._file(self.path / SINGLE).keys(), self.path / SINGLE)

    def _file(self, file: Path) -> Any:
        if file.name not in self._open:
            if not file.exists():
                other = "; there is pytorch_model.bin, which is not read" if list(self.path.glob("*.bin")) else ""
                raise Refusal(f"{file} is missing{other}: download the folder's safetensors files")
            library: Any = import_module("safetensors")
            try:
                self._open[file.name] = library.safe_open(str(file), framework="numpy")
            except library.SafetensorError as error:
                raise Refusal(f"{file} is not a whole safetensors file ({error}): download it again") from None
        return self._open[file.name]

    def slice(self, name: str) -> Any:
        """A tensor that is read where it is indexed. Raises Refusal for what holds no floating point numbers."""
        found = self._file(self.weight_map[name]).get_slice(name)
        if found.get_dtype() not in FLOATS:
            raise Refusal(
                f"{self.weight_map[name]}: {name!r} has dtype {found.get_dtype()}; accepted: {', '.join(FLOATS)}"
            )
        return found


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object. Raises Refusal naming the file."""
    if not file.exists():
        raise Refusal(f"{file} is missing: this is no checkpoint folder, or only part of one")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refusal(f"{file} is not a JSON object")
    return found


def load(folder: Folder, model: Model, shardings: Any, dtype: str = "float32") -> Params:
    """The params of a decoder, each tensor read slice by slice into its sharding.

    Args:
      model: the family's model of `folder.model_config`.
      shardings: a tree like the params; host memory holds no more than one tensor at a time.
      dtype: of the params; trained roles want float32.

    Raises Refusal for a missing, unknown or differently shaped tensor.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    tensors = layouts.tensors(folder.family, folder.model_config)
    check_names(folder, {tensor.name for tensor in tensors.values()})
    return _fill(folder, tensors, shapes, shardings, dtype)


def value_shapes(model: ValueModel, folder: Folder) -> Params:
    """Shapes of `load_value`'s params: the backbone's without its head, which such a folder lacks where it is not tied."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    kept = {path: leaf for path, leaf in _flat(shapes["backbone"]).items() if _in_backbone(folder, path)}
    return {"backbone": unflatten_dict(kept), "value_head": shapes["value_head"]}


def _in_backbone(folder: Folder, path: tuple[str, ...]) -> bool:
    tensors = layouts.tensors(folder.family, folder.model_config)
    return tensors["/".join(path)].name != layouts.head_name(folder.family)


def load_value(folder: Folder, model: ValueModel, shardings: Any, dtype: str = "float32") -> Params:
    """The params of a reward model published as a sequence classifier of one label; shardings as `value_shapes`."""
    if SCORE not in folder.weight_map:
        raise Refusal(f"{folder.path} has no tensor {SCORE!r}: it is no reward model (a sequence classifier)")
    if folder.slice(SCORE).get_shape() != [1, model.backbone.width]:
        raise Refusal(
            f"{folder.path}: {SCORE} has shape {folder.slice(SCORE).get_shape()}; accepted: one label, "
            f"[1, {model.backbone.width}]"
        )
    shapes = value_shapes(model, folder)
    tensors = layouts.tensors(folder.family, folder.model_config)
    tensors = {path: tensor for path, tensor in tensors.items() if tensor.name != layouts.head_name(folder.family)}
    check_names(
        folder, {tensor.name for tensor in tensors.values()}, {SCORE, SCORE_BIAS, layouts.head_name(folder.family)}
    )
    backbone = _fill(folder, tensors, shapes["backbone"], shardings["backbone"], dtype)
    kernel = np.asarray(folder.slice(SCORE)[:], np.float32).T
    bias = np.zeros(1, np.float32)
    if SCORE_BIAS in folder.weight_map:
        bias = np.asarray(folder.slice(SCORE_BIAS)[:], np.float32)
    head = {"kernel": kernel, "bias": bias}
    return {"backbone": backbone, "value_head": jax.device_put(head, shardings["value_head"])}


def check_names(folder: Folder, wanted: set[str], allowed: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raises Refusal where the folder lacks a tensor, or holds one that the family does not know."""
    there = set(folder.weight_map)
    missing = sorted(wanted - there)
    unknown = sorted(name for name in there - wanted - allowed if not layouts.ignored(folder.family, name))
    if missing:
        raise Refusal(f"{folder.path} lacks {len(missing)} tensor(s) of {folder.family}: {_some(missing)}")
    if unknown:
        raise Refusal(f"{folder.path} holds {len(unknown)} tensor(s) that {folder.family} has not: {_some(unknown)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _flat(tree: Params) -> dict[tuple[str, ...], Any]:
    return flatten_dict(tree)  # pyright: ignore[reportReturnType] (its type allows for empty nodes, which params have not)


def _fill(folder: Folder, tensors: Mapping[str, Any], shapes: Params, shardings: Params, dtype: str) -> Params:
    params, of_path = {}, _flat(shardings)
    for path in _flat(shapes):
        tensor, where = tensors["/".join(path)], of_path[path]
        found = folder.slice(tensor.name)
        if tuple(found.get_shape()) != tensor.shape:
            raise Refusal(
                f"{folder.weight_map[tensor.name]}: {tensor.name} has shape {tuple(found.get_shape())}, but {CONFIG} says "
                f"{tensor.shape}"
            )
        layout = _reversed(where) if tensor.transpose else where
        read = jax.make_array_from_callback(tensor.shape, layout, partial(_part, found))
        params[path] = _converter(tensor.transpose, dtype, where)(read)
    return unflatten_dict(params)


def _part(found: Any, index: Any) -> np.ndarray:
    part = found[index]
    return part.astype(np.float32) if part.dtype == np.float64 else part


def _reversed(where: NamedSharding) -> NamedSharding:
    """The sharding of a matrix whose transpose is sharded so."""
    rows, columns = (*where.spec, None, None)[:2]
    return NamedSharding(where.mesh, PartitionSpec(columns, rows))


@lru_cache(maxsize=64)
def _converter(transpose: bool, dtype: str, where: NamedSharding) -> Any:
    """To our layout and dtype, on the device: half precision travels as it is, and the processor's threads share the work."""
    return jax.jit(lambda read: (read.T if transpose else read).astype(dtype), out_shardings=where)
