"""Adapters as folders of the library PEFT: `adapter_config.json` and `adapter_model.safetensors`.

A tensor is named `base_model.model.` + the module as published + `.lora_A.weight` `[r, in]` or
`.lora_B.weight` `[out, r]`: ours transposed. Where a family publishes several of our matrices as
one, their adapters become one of the sum of their ranks, whose B is zero outside of its blocks. PEFT
loads tensors under other names with a warning, and B = 0.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rlhf_jax.extras import needed
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.adapters import Adapted, Config, in_form_of, targets
from rlhf_jax.models.common.stacking import unstack
from rlhf_jax.pretrained import layouts
from rlhf_jax.pretrained.folders import SCORE, SCORE_BIAS
from rlhf_jax.pretrained.layouts import Tensor
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian"),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (None, {})),
    **dict.fromkeys(
        ("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "megatron_config"), (None, False)
    ),
    **dict.fromkeys(("target_parameters", "trainable_token_indices"), (None, [], {})),
}
"""Values of adapter_config.json that say nothing but a plain adapter of the base as published."""


def write(
    directory: Path, model: Model, params: Params, targets_of: Config, base: str, dtype: str
) -> None:
    """Writes the two files of an adapter to a folder that is there.

    Args:
      directory: the folder.
      model: of the base.
      params: of a policy or a reward model with an adapter.
      targets_of: the settings of the adapter.
      base: the folder or the name of the base, for whoever loads it.
      dtype: of the tensors.
    """
    adapted = params.get("backbone", params)
    assert isinstance(adapted, Adapted)
    arrays = published(model, adapted)
    head = params.get("value_head")
    if head is not None:
        arrays[PREFIX + SCORE] = np.ascontiguousarray(_host(head["kernel"]).T)
        if np.any(_host(head["bias"])):
            arrays[PREFIX + SCORE_BIAS] = _host(head["bias"])
    with needed("hub", "the export of an adapter"):
        save_file = import_module("safetensors.numpy").save_file
    stored = {name: array.astype(dtype) for name, array in arrays.items()}
    save_file(stored, str(directory / WEIGHTS), metadata={"format": "pt"})
    content = config(arrays, targets_of, base, scores=head is not None)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")


def config(
    arrays: Mapping[str, np.ndarray], settings: Config, base: str, scores: bool
) -> dict[str, Any]:
    """The adapter_config.json of tensors.

    Args:
      arrays: by their names, as `published` gives them.
      settings: of the adapter.
      base: the folder or the name of the base.
      scores: True for a reward model, whose head is in the file.
    """
    ranks = {
        name.removesuffix(A).rpartition(".")[2]: array.shape[0]
        for name, array in arrays.items()
        if name.endswith(A)
    }
    # Of matrices that are published as one: alpha grows with the rank, so that the scale stays.
    others = {module: rank for module, rank in ranks.items() if rank != settings.rank}
    alpha = {module: settings.scale * rank for module, rank in others.items()}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": {module: _number(value) for module, value in alpha.items()},
        "modules_to_save": ["score"] if scores else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def published(model: Model, params: Adapted) -> dict[str, np.ndarray]:
    """The tensors of an adapter by their names in a PEFT folder, float32 on the host.

    Args:
      model: of the base.
      params: of it, with an adapter.
    """
    adapter = unstack(jax.device_get(params.adapter))
    flat, members = flatten_dict(adapter, sep="/"), dict[str, list[tuple[Tensor, str]]]()
    for path, tensor in _tensors(model).items():
        module = path.removesuffix("/kernel")
        if f"{module}/a" in flat:
            members.setdefault(tensor.name, []).append((tensor, module))
    arrays = {}
    for name, parts in members.items():
        parts.sort()
        a = np.concatenate([_host(flat[f"{module}/a"]) for _, module in parts], axis=1)
        b = np.zeros((a.shape[1], parts[0][0].shape[0]), np.float32)
        row = 0
        for tensor, module in parts:
            block = _host(flat[f"{module}/b"])
            b[row : row + block.shape[0], tensor.start : tensor.stop] = block
            row += block.shape[0]
        stem = PREFIX + name.removesuffix(".weight")
        arrays[stem + A] = np.ascontiguousarray(a.T)
        arrays[stem + B] = np.ascontiguousarray(b.T)
    return arrays


def read(directory: Path, model: Model, settings: Config) -> Params:
    """The adapter of a PEFT folder, float32 on the host.

    Args:
      directory: the folder.
      model: of the base.
      settings: of the run's adapters, which must be the folder's.

    Raises MissingInput without the two files; Refusal, naming the key or the tensor, for an adapter
    that is more than A and B of the run's rank, scale and layers.
    """
    _check_config(directory, settings)
    with needed("hub", "the adapter of a folder"):
        arrays: dict[str, np.ndarray] = import_module("safetensors.numpy").load_file(
            str(directory / WEIGHTS)
        )
    wanted, adapter = set[str](), dict[tuple[str, ...], np.ndarray]()
    tensors = _tensors(model)
    for path, (num_in, num_out) in targets(model, settings).items():
        tensor = tensors["/".join((*path, "kernel"))]
        stem = PREFIX + tensor.name.removesuffix(".weight")
        shapes = {A: (settings.rank, num_in), B: (tensor.shape[0], settings.rank)}
        for suffix, shape in shapes.items():
            if stem + suffix not in arrays:
                raise Refusal(
                    f"{directory / WEIGHTS} has no {stem + suffix!r}, an adapter of lora.targets = "
                    f"{settings.targets}; it has {_some(arrays)}"
                )
            if arrays[stem + suffix].shape != shape:
                raise Refusal(
                    f"{directory / WEIGHTS}: {stem + suffix} has shape "
                    f"{arrays[stem + suffix].shape}; accepted: {shape}"
                )
        wanted |= {stem + A, stem + B}
        adapter[*path, "a"] = np.asarray(arrays[stem + A], np.float32).T
        rows = arrays[stem + B][tensor.start : tensor.stop]
        adapter[*path, "b"] = np.asarray(rows, np.float32).T
        assert adapter[*path, "b"].shape == (settings.rank, num_out)
    if unknown := sorted(arrays.keys() - wanted):
        raise Refusal(
            f"{directory / WEIGHTS} holds {unknown[0]!r}, which is no adapter of lora.targets = "
            f"{settings.targets} of {model.family}; accepted: those layers alone"
        )
    return in_form_of(model, unflatten_dict(adapter))


def _check_config(directory: Path, settings: Config) -> None:
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).exists():
            raise MissingInput(
                f"{directory} has no {file}: it is no PEFT folder (experiments.export --adapter "
                "writes one)"
            )
    stored = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    for key, accepted in ACCEPTED.items():
        if stored.get(key, accepted[0]) not in accepted:
            raise Refusal(
                f"{directory / CONFIG}: {key} is {stored[key]!r}; accepted: {accepted[-1]!r} "
                "(merge it into its base with PEFT, and take that folder as pretrained.sft)"
            )
    rank, alpha = int(stored["r"]), float(stored["lora_alpha"])
    if rank != settings.rank:
        raise Refusal(
            f"{directory / CONFIG}: r is {rank}, and lora.rank is {settings.rank}; "
            f"accepted: --config.lora.rank={rank}"
        )
    alpha = alpha * rank**0.5 if stored.get("use_rslora") else alpha  # alpha / sqrt(r)
    if abs(alpha - settings.alpha) > 1e-6 * alpha:
        raise Refusal(
            f"{directory / CONFIG}: the adapter's scale is {alpha / rank:g}, and lora.alpha is "
            f"{settings.alpha:g}; accepted: --config.lora.alpha={alpha:g}"
        )


def _tensors(model: Model) -> dict[str, Tensor]:
    return layouts.tensors(model.family, model.config)  # pyright: ignore[reportAttributeAccessIssue]


def _host(array: object) -> np.ndarray:
    return np.asarray(jax.device_get(array), np.float32)


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _some(names: Mapping[str, Any]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:2]) + (", ..." if len(listed) > 2 else "") if listed else "none"
