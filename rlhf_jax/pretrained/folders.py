"""Checkpoint folders as Hugging Face publishes them, read tensor by tensor into a sharding.

`pretrained/published_configs.py` says which key of config.json is which number,
`pretrained/layouts.py` which tensor is which param, and `pretrained/weight_files.py` which file
holds a tensor.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax import randomness
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import stacking
from rlhf_jax.models.common.decoder import DecoderConfig
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.pretrained import layouts
from rlhf_jax.pretrained.published_families import FAMILIES
from rlhf_jax.pretrained.published_kinds import is_classifier
from rlhf_jax.pretrained.weight_files import INDEX as INDEX
from rlhf_jax.pretrained.weight_files import SINGLE as SINGLE
from rlhf_jax.pretrained.weight_files import TensorSlice, WeightFiles, check_folder, read_json
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array, Params

CONFIG = "config.json"
SCORE = "score.weight"  # the head of AutoModelForSequenceClassification, [1, D]
SCORE_BIAS = "score.bias"  # which some published reward models have all the same
ROWS_AT_ONCE = 8192  # of two tensors that are compared


@dataclass(frozen=True)
class Folder:
    """An opened checkpoint folder. No tensor is read before it is asked for.

    Raises Refusal, naming the file, for what is missing, broken, ambiguous or not computed.
    """

    path: Path

    def __post_init__(self) -> None:
        check_folder(self.path)
        _ = self.model_config

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""
        return read_json(self.path / CONFIG)

    @cached_property
    def weights(self) -> WeightFiles:
        """Its safetensors files."""
        return WeightFiles(self.path)

    @property
    def weight_map(self) -> dict[str, Path]:
        """The file of every tensor."""
        return self.weights.map

    def slice(self, name: str) -> TensorSlice:
        """A tensor that is read where it is indexed.

        Raises Refusal for what holds no floating point numbers.
        """
        return self.weights.slice(name)

    @cached_property
    def _read(self) -> tuple[str, Any]:
        published = self.config
        try:
            family, config = layouts.read_config(published)
        except ValueError as error:
            raise Refusal(f"{self.path / CONFIG}: {error}") from None
        if self.has_score:
            return family, replace(config, padding_id=self._padding_id(family))
        if config.tie_embeddings and self._has_head_of_its_own(family):
            return family, replace(config, tie_embeddings=False)
        return family, config

    @property
    def family(self) -> str:
        """The file of `models/` that has this architecture."""
        return self._read[0]

    @property
    def model_config(self) -> DecoderConfig:
        """The family's Config; its dtype is float32.

        Embeddings that config.json ties are apart where the folder holds a head with other values,
        as in transformers 5.
        """
        return self._read[1]

    @property
    def has_score(self) -> bool:
        """The folder holds a sequence classifier."""
        return SCORE in self.weight_map

    def _padding_id(self, family: str) -> int:
        """The id at which transformers never reads a score: pad_token_id, by which it finds the
        last token of a row.
        """
        pad_id = self.config.get("pad_token_id", FAMILIES[family].pad_id)
        if pad_id is not None and (isinstance(pad_id, bool) or not isinstance(pad_id, int)):
            raise Refusal(
                f"{self.path / CONFIG}: pad_token_id is {pad_id!r}; accepted: an id or null"
            )
        return -1 if pad_id is None else pad_id

    def _has_head_of_its_own(self, family: str) -> bool:
        head, embedding = layouts.head_name(family), layouts.embedding_name(family)
        if head not in self.weight_map or embedding not in self.weight_map:
            return False
        files = tuple(
            (str(file), file.stat().st_mtime_ns)
            for file in (self.weight_map[head], self.weight_map[embedding])
        )
        return not _equal(self.path, head, embedding, files)


@lru_cache(maxsize=16)
def _equal(path: Path, name_a: str, name_b: str, files: tuple[tuple[str, int], ...]) -> bool:
    """Two tensors of a folder hold the same numbers; compared once for each state of their `files`."""
    weights = WeightFiles(path)
    a, b = weights.slice(name_a), weights.slice(name_b)
    if a.get_shape() != b.get_shape():
        return False
    num_rows = a.get_shape()[0]
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, num_rows))
        if not np.array_equal(a[rows].astype(np.float32), b[rows].astype(np.float32)):
            return False
    return True


def load(folder: Folder, model: Model, shardings: Params, dtype: str = "float32") -> Params:
    """The params of a decoder, each tensor read slice by slice into its sharding.

    Args:
      model: the family's model of `folder.model_config`, which may stack its layers.
      shardings: a tree like the params; host memory holds no more than one tensor at a time.
      dtype: of the params; trained roles want float32.

    Raises Refusal for a missing, unknown or differently shaped tensor, and for a folder of a reward
    model.
    """
    check_decoder(folder)
    shapes = jax.eval_shape(model.init, randomness.key(0))
    return _fill(
        folder, layouts.tensors(folder.family, folder.model_config), shapes, shardings, dtype
    )


def check_decoder(folder: Folder) -> None:
    """Raises Refusal for a folder whose tensors are not those of a decoder; no tensor is read."""
    if folder.has_score or is_classifier(folder.family, folder.config):
        raise Refusal(
            f"{folder.path} is a reward model (a sequence classifier), and no policy; accepted: a "
            "folder of "
            f"{layouts.architecture(folder.family)}"
        )
    _check_tensors(folder, layouts.tensors(folder.family, folder.model_config))


def value_shapes(model: ValueModel, folder: Folder) -> Params:
    """Shapes of `load_value`'s params: the backbone's without its head, which such a folder lacks
    where it is not tied.

    Args:
      model: the network with a value head.
      folder: of the classifier.
    """
    shapes = jax.eval_shape(model.init, randomness.key(0))
    backbone = {
        path: leaf
        for path, leaf in stacking.flat(shapes["backbone"]).items()
        if "/".join(stacking.members(path, shapes["backbone"])[0]) in _backbone(folder)
    }
    return {"backbone": unflatten_dict(backbone), "value_head": shapes["value_head"]}


def _backbone(folder: Folder) -> dict[str, layouts.Tensor]:
    tensors = layouts.tensors(folder.family, folder.model_config)
    return {
        path: tensor
        for path, tensor in tensors.items()
        if tensor.name != layouts.head_name(folder.family)
    }


def load_value(
    folder: Folder, model: ValueModel, shardings: Params, dtype: str = "float32"
) -> Params:
    """The params of a reward model published as a sequence classifier of one label; shardings as
    `value_shapes`.

    Args:
      folder: of the classifier.
      model: the network with a value head.
      shardings: of its params, in the tree of `value_shapes`.
      dtype: of the params.
    """
    check_classifier(folder)
    shapes = value_shapes(model, folder)
    backbone = _fill(folder, _backbone(folder), shapes["backbone"], shardings["backbone"], dtype)
    kernel = np.asarray(folder.slice(SCORE)[:], np.float32).T
    bias = np.zeros(1, np.float32)
    if SCORE_BIAS in folder.weight_map:
        bias = np.asarray(folder.slice(SCORE_BIAS)[:], np.float32)
    head = {"kernel": kernel, "bias": bias}
    return {"backbone": backbone, "value_head": jax.device_put(head, shardings["value_head"])}


def check_classifier(folder: Folder) -> None:
    """Raises Refusal for a folder whose tensors are not those of a sequence classifier of one
    label; no tensor is read.
    """
    if not folder.has_score:
        raise Refusal(
            f"{folder.path} has no tensor {SCORE!r}: it is no reward model (a sequence classifier)"
        )
    shape, width = folder.slice(SCORE).get_shape(), folder.model_config.width
    if shape != [1, width]:
        raise Refusal(
            f"{folder.path}: {SCORE} has shape {shape}; accepted: one label, [1, {width}]"
        )
    if SCORE_BIAS in folder.weight_map and folder.slice(SCORE_BIAS).get_shape() != [1]:
        raise Refusal(
            f"{folder.path}: {SCORE_BIAS} has shape {folder.slice(SCORE_BIAS).get_shape()}; "
            "accepted: [1]"
        )
    _check_tensors(folder, _backbone(folder), {SCORE, SCORE_BIAS, layouts.head_name(folder.family)})


def _check_tensors(
    folder: Folder, tensors: Mapping[str, layouts.Tensor], allowed: Collection[str] = frozenset()
) -> None:
    """Raises Refusal where the folder lacks a tensor, has it in another shape, or holds one that
    the family does not know.
    """
    wanted, present = (
        {tensor.name: tensor.shape for tensor in tensors.values()},
        set(folder.weight_map),
    )
    missing = sorted(wanted.keys() - present)
    unknown = sorted(
        name
        for name in present - wanted.keys() - set(allowed)
        if not layouts.ignored(folder.family, name)
    )
    if missing:
        instead = f", and holds {_some(unknown)}" if unknown else ""
        tied = "; a head that is tied wants tie_word_embeddings true in config.json"
        raise Refusal(
            f"{folder.path} lacks {len(missing)} tensor(s) of {folder.family}: "
            f"{_some(missing)}{instead}"
            f"{tied if missing == [layouts.head_name(folder.family)] else ''}"
        )
    if unknown:
        raise Refusal(
            f"{folder.path} holds {len(unknown)} tensor(s) that {folder.family} has not: "
            f"{_some(unknown)}"
        )
    for name, shape in wanted.items():
        if tuple(folder.slice(name).get_shape()) != shape:
            raise Refusal(
                f"{folder.weight_map[name]}: {name} has shape "
                f"{tuple(folder.slice(name).get_shape())}, but {CONFIG} says "
                f"{shape}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _fill(
    folder: Folder,
    tensors: Mapping[str, layouts.Tensor],
    shapes: Params,
    shardings: Params,
    dtype: str,
) -> Params:
    params, sharding_of = {}, stacking.flat(shardings)

    def read(path: tuple[str, ...], sharding: NamedSharding) -> Array:
        tensor = tensors["/".join(path)]
        layout = _reversed(sharding) if tensor.transpose else sharding
        read_rows = partial(_read_rows, folder.slice(tensor.name), tensor.start, tensor.stop)
        array = jax.make_array_from_callback(tensor.rows_shape, layout, read_rows)
        return _converter(tensor.transpose, dtype, sharding)(array)

    for path in stacking.flat(shapes):
        sharding = sharding_of[path]
        if not stacking.is_stacked_path(path):
            params[path] = read(path, sharding)
            continue
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        layers = [read(member, of_layer) for member in stacking.members(path, shapes)]
        params[path] = _stacker(sharding)(layers)
    return unflatten_dict(params)


@lru_cache(maxsize=64)
def _stacker(sharding: NamedSharding) -> Callable[[list[Array]], Array]:
    return jax.jit(jnp.stack, out_shardings=sharding)


def _read_rows(
    tensor: TensorSlice, start: int, stop: int, index: tuple[slice, ...] | None
) -> np.ndarray:
    """Slice `index` of rows `start` to `stop` of a tensor; None is all of them."""
    rows, *columns = index or (slice(None),)
    first, last, _ = rows.indices(stop - start)
    array = tensor[(slice(start + first, start + last), *columns)]
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _reversed(sharding: NamedSharding) -> NamedSharding:
    """The sharding of a matrix whose transpose is sharded so."""
    rows, columns = (*sharding.spec, None, None)[:2]
    return NamedSharding(sharding.mesh, PartitionSpec(columns, rows))


@lru_cache(maxsize=64)
def _converter(transpose: bool, dtype: str, sharding: NamedSharding) -> Callable[[Array], Array]:
    """To our layout and dtype, on the device: half precision travels as it is, and the processor's
    threads share the work.
    """
    return jax.jit(
        lambda read: (read.T if transpose else read).astype(dtype), out_shardings=sharding
    )
