"""Params written as a checkpoint folder that `transformers` loads, the inverse of `hub/folders.py`."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rlhf_jax.hub import layouts
from rlhf_jax.hub.folders import CONFIG, INDEX, SCORE, SCORE_BIAS, SINGLE
from rlhf_jax.models.api import Model
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Params

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
MAX_FILE_BYTES = 5 << 30


def save(
    directory: Path,
    model: Model,
    params: Params,
    *,
    token_ids: Mapping[str, int],
    tokenizer_from: Path | None = None,
    dtype: str = "float32",
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a folder that `transformers` loads: a decoder, or for params with a value head a sequence classifier.

    Args:
      token_ids: `eos_token_id`, `pad_token_id`, ... of config.json, and what else it should say.
      tokenizer_from: a folder whose tokenizer files are copied.
      max_file_bytes: where the tensors are larger, several files and an index are written; host memory holds one file's.

    Written beside its place and renamed at the end. Raises Refusal where the directory is there already.
    """
    if directory.exists():
        raise Refusal(f"{directory} is there already; export to a new folder")
    family, model_config = type(model).__module__.rpartition(".")[2], model.config  # pyright: ignore[reportAttributeAccessIssue]
    partial_directory = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    tensors = dict(_published_tensors(family, model_config, params))
    kind = layouts.sequence_classifier(family) if "value_head" in params else layouts.architecture(family)
    config = (
        layouts.write_config(family, model_config)
        | dict(token_ids)
        | {"architectures": [kind], "dtype": dtype, "torch_dtype": dtype}
    )
    if "value_head" in params:
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _write_tensors(partial_directory, tensors, jnp.dtype(dtype), max_file_bytes)
    for name in TOKENIZER_FILES:
        if tokenizer_from is not None and (tokenizer_from / name).exists():
            shutil.copyfile(tokenizer_from / name, partial_directory / name)
    (partial_directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial_directory.rename(directory)


Tensor = tuple[tuple[int, ...], Callable[[], np.ndarray]]


def _published_tensors(family: str, model_config: Any, params: Params) -> Iterator[tuple[str, Tensor]]:
    """(name, (shape, what fetches it)) of every tensor."""
    arrays = flatten_dict(params.get("backbone", params), sep="/")
    for path, tensor in layouts.tensors(family, model_config).items():
        array = arrays.get(path)
        if "value_head" in params and tensor.name == layouts.head_name(family):
            continue
        if array is None:
            raise Refusal(f"the params have no {path!r}: they are not of this {family} config")
        yield tensor.name, _fetched(array, tensor.transpose)
    if "value_head" in params:
        yield SCORE, _fetched(params["value_head"]["kernel"], True)
        if np.any(np.asarray(params["value_head"]["bias"])):
            yield SCORE_BIAS, _fetched(params["value_head"]["bias"], False)


def _fetched(array: Any, transpose: bool) -> Tensor:
    def fetch() -> np.ndarray:
        host = np.asarray(jax.device_get(array))
        return np.ascontiguousarray(host.T if transpose else host)

    return (array.shape[::-1] if transpose else array.shape), fetch


def _write_tensors(directory: Path, tensors: Mapping[str, Tensor], dtype: Any, max_file_bytes: int) -> None:
    files: list[list[str]] = [[]]
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, _) in tensors.items()}
    filled = 0
    for name, size in sizes.items():
        if files[-1] and filled + size > max_file_bytes:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    names = (
        [SINGLE]
        if len(files) == 1
        else [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    )
    write: Any = import_module("safetensors.numpy").save_file
    for file, members in zip(names, files, strict=True):
        write(
            {member: tensors[member][1]().astype(dtype) for member in members},
            str(directory / file),
            metadata={"format": "pt"},
        )
    if len(files) > 1:
        where = {member: file for file, members in zip(names, files, strict=True) for member in members}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
