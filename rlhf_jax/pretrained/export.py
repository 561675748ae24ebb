"""Params written as a checkpoint folder that `transformers` loads, the inverse of
`pretrained/folders.py`.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from rlhf_jax.extras import needed
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import stacking
from rlhf_jax.models.common.decoder import DecoderConfig
from rlhf_jax.pretrained import carried, layouts
from rlhf_jax.pretrained.folders import CONFIG, INDEX, SCORE, SCORE_BIAS, SINGLE, Folder
from rlhf_jax.pretrained.published_configs import computed
from rlhf_jax.refusal import Refusal
from rlhf_jax.text.folder_texts import GENERATION, TOKENIZER_CONFIG
from rlhf_jax.types import Array, Params

MAX_FILE_BYTES = 5 << 30
CARD = "README.md"
OF_THE_FILE = (
    "_name_or_path",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
)  # of a config.json: not taken over


def save(
    directory: Path,
    model: Model,
    params: Params,
    *,
    token_ids: Mapping[str, Any],
    tokenizer_from: Path | None = None,
    model_from: Folder | None = None,
    dtype: str = "float32",
    max_file_bytes: int = MAX_FILE_BYTES,
    card: str = "",
) -> None:
    """Writes a folder that `transformers` loads: a decoder, or for params with a value head a
    sequence classifier.

    Args:
      token_ids: `eos_token_id` (one or a list), `pad_token_id`, ... of config.json, and what else
        it should say.
      tokenizer_from: the tokenizer's file or its folder, whose files are copied
        (`pretrained/carried.py`).
      model_from: the folder that the model came from: its config.json is taken over, and its files
        but for weights.
      max_file_bytes: where the tensors are larger, several files and an index are written; host
        memory holds one file's.
      card: the text of README.md; "": none is written.

    Written beside its place and renamed at the end. Raises Refusal where the directory is there
    already, or where the config.json that would be written does not read as this model.
    """
    if directory.exists():
        raise Refusal(f"{directory} is there already; export to a new folder")
    files = carried.files(tokenizer_from, model_from and model_from.path)
    ends = carried.listed(token_ids.get("eos_token_id"))
    generation = carried.generation(files, ends)
    config = _config(model, model_from, token_ids, "value_head" in params)
    if generation is not None and ends:
        config["eos_token_id"] = generation["eos_token_id"]
    config |= {"dtype": dtype, "torch_dtype": dtype}
    tensors = dict(published_tensors(model.family, model.config, params))  # pyright: ignore[reportAttributeAccessIssue]
    partial_directory = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial_directory, ignore_errors=True)
    partial_directory.mkdir(parents=True)
    _write_tensors(partial_directory, tensors, jnp.dtype(dtype), max_file_bytes)
    carried.copy(files, partial_directory)
    if generation is not None and ends:
        _write_json(partial_directory / GENERATION, generation)
    if (description := carried.description(files, token_ids)) is not None:
        _write_json(partial_directory / TOKENIZER_CONFIG, description)
    if card:
        (partial_directory / CARD).write_text(card, encoding="utf-8")
    _write_json(partial_directory / CONFIG, config)
    partial_directory.rename(directory)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(
        json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _config(
    model: Model, model_from: Folder | None, token_ids: Mapping[str, Any], scores: bool
) -> dict[str, Any]:
    """The config.json: that of the folder that the model came from, or one of our own, which must
    read as the model.
    """
    family, ours = model.family, model.config  # pyright: ignore[reportAttributeAccessIssue]
    if model_from is None:
        config = layouts.write_config(family, ours)
    elif model_from.family != family:
        raise Refusal(
            f"{model_from.path} is of the family {model_from.family}, but the model is {family}"
        )
    else:
        config = {key: value for key, value in model_from.config.items() if key not in OF_THE_FILE}
        config["tie_word_embeddings"] = (
            ours.tie_embeddings
        )  # apart where the folder held a head of its own
    config |= token_ids
    config["architectures"] = [
        layouts.sequence_classifier(family) if scores else layouts.architecture(family)
    ]
    if scores:
        config |= {
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "pad_token_id": _pad_id(ours, config),
        }
    read_family, read = layouts.read_config(config)
    if (read_family, computed(read)) != (family, computed(ours)):
        raise Refusal(
            f"config.json would read as {read_family} {read}, but the model is {family} {ours}"
        )
    return config


def _pad_id(config: DecoderConfig, published: Mapping[str, Any]) -> int | None:
    """The pad_token_id of a reward model, by which transformers finds the token that it reads the
    score at.

    A model that is read at its EOS must not have the EOS for padding. Without any, transformers
    reads the last token of a row, and refuses several rows at once.
    """
    if config.padding_id >= 0:
        return config.padding_id
    pad = published.get("pad_token_id")
    return None if pad in carried.listed(published.get("eos_token_id")) else pad


Tensor = tuple[tuple[int, ...], Callable[[], np.ndarray]]


def published_tensors(
    family: str, model_config: DecoderConfig, params: Params
) -> Iterator[tuple[str, Tensor]]:
    """Yields name, shape and fetching function of every published tensor; nothing is fetched yet.

    Args:
      family: a file of `models/` with a published form.
      model_config: of the family.
      params: of a decoder, or of a value model, whose backbone's own head is left out.

    Raises Refusal for params that are not of this config.
    """
    layers, members_by_name = params.get("backbone", params), {}
    arrays = flatten_dict(layers)
    for path, tensor in layouts.tensors(family, model_config).items():
        if "value_head" in params and tensor.name == layouts.head_name(family):
            continue
        place, index = stacking.where_of(tuple(path.split("/")), layers)
        if place not in arrays:
            raise Refusal(f"the params have no {path!r}: they are not of this {family} config")
        members_by_name.setdefault(tensor.name, []).append((tensor, arrays[place], index))
    for name, members in members_by_name.items():
        yield name, (members[0][0].shape, partial(_fetch, members))
    if "value_head" in params:
        head = params["value_head"]
        yield SCORE, (head["kernel"].shape[::-1], lambda: _host(head["kernel"], True))
        if np.any(np.asarray(head["bias"])):
            yield SCORE_BIAS, (head["bias"].shape, lambda: _host(head["bias"], False))


def _fetch(members: Sequence[tuple[layouts.Tensor, Any, int | None]]) -> np.ndarray:
    """A published tensor on the host, of the params that it holds; of stacked ones a layer's."""
    in_order = sorted(members, key=lambda member: member[0].start)
    rows = [
        _host(array if index is None else array[index], tensor.transpose)
        for tensor, array, index in in_order
    ]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _host(array: Array, transpose: bool) -> np.ndarray:
    host = np.asarray(jax.device_get(array))
    return np.ascontiguousarray(host.T if transpose else host)


def _write_tensors(
    directory: Path, tensors: Mapping[str, Tensor], dtype: np.dtype, max_file_bytes: int
) -> None:
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
    with needed("hub", "the export of a model"):
        write = import_module("safetensors.numpy").save_file
    for file, members in zip(names, files, strict=True):
        write(
            {member: tensors[member][1]().astype(dtype) for member in members},
            str(directory / file),
            metadata={"format": "pt"},
        )
    if len(files) > 1:
        weight_map = {
            member: file for file, members in zip(names, files, strict=True) for member in members
        }
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
