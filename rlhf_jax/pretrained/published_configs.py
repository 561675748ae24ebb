"""A published `config.json` as a family's `Config` and back: which key is which number, and what a
missing key means.

A key that changes what a model computes is read, or its value is refused by name. Tables:
`published_families.py`.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import registry
from rlhf_jax.models.common import decoder, rope
from rlhf_jax.pretrained.published_families import FAMILIES, NULL_IS_ZERO, model_type
from rlhf_jax.pretrained.published_kinds import check_accepted, check_architectures, family_of
from rlhf_jax.pretrained.published_rope import FULL, SLIDING, read_rope, write_rope
from rlhf_jax.pretrained.published_values import typed
from rlhf_jax.refusal import Refusal

NOT_PUBLISHED = (
    "dtype",
    "remat",
    "remat_policy",
    "attention",
    "scan_layers",
    "gradient_dtype",
    "network_gradient_dtype",
    "init_scale",
    "padding_id",
)  # of our configs: no folder says it
# Of our configs: what says which layers see a window and how each turns. `computed` asks the layers
# themselves.
OF_LAYERS = (
    "sliding_window",
    "first_window_layer",
    "full_attention_interval",
    "no_rope_interval",
    "rotary_fraction",
)
LAYER_KEYS = {  # keys that say something of each layer, read by the functions below
    "layer_types",
    "sliding_window_pattern",
    "use_sliding_window",
    "no_rope_layers",
    "no_rope_layer_interval",
}


def read_config(published: Mapping[str, Any]) -> tuple[str, Any]:
    """The family's name and its `Config`, computing in float32, of a parsed `config.json`.

    Raises Refusal, naming key and value, for a missing key, for keys that contradict one another,
    and for whatever changes the maths in a way that the family does not compute.
    """
    family = family_of(published)
    check_architectures(family, published)
    check_accepted(family, published, FAMILIES[family].accepted)
    config_type = registry.find("models", family).Config
    kinds = typing.get_type_hints(config_type)
    values = {
        field: typed(published, field, kinds[field], *at)
        for field, at in FAMILIES[family].fields.items()
    }
    if family != "gpt_neox":
        values["num_kv_heads"] = values["num_kv_heads"] or values["num_heads"]
        if not values["head_width"] and values["width"] % values["num_heads"] == 0:
            values["head_width"] = values["width"] // values["num_heads"]
    values |= _read_layers(family, published, values)
    config = config_type(**values, **read_rope(family, published))
    _check_layer_types(published, config)
    return family, config


def _read_layers(
    family: str, published: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that say which layers see a window, and which turn."""
    fields: dict[str, Any] = {}
    if FAMILIES[family].interval:
        fields["full_attention_interval"] = _interval(family, published, values["num_layers"])
    if family == "smollm3":
        fields["no_rope_interval"] = _no_rope_interval(published, values["num_layers"])
    if ("first_window_layer" in values or family == "smollm3") and not published.get(
        "use_sliding_window", False
    ):
        fields["sliding_window"] = (
            0  # the number alone means nothing: Qwen's files hold one that is switched off
        )
    return fields


def _interval(family: str, published: Mapping[str, Any], num_layers: int) -> int:
    """Every how many layers one sees all columns, of `layer_types` and of Gemma's older
    `sliding_window_pattern`.
    """
    default = FAMILIES[family].interval
    older = published.get("sliding_window_pattern") if family == "gemma3" else None
    interval = (
        default
        if older is None
        else typed(published, "interval", int, "sliding_window_pattern", default)
    )
    stated = published.get("layer_types")
    if stated is None:
        return interval
    listed = period(
        [kind == FULL for kind in _listed("layer_types", stated, num_layers, (FULL, SLIDING))]
    )
    if listed is None:
        raise Refusal(
            f"layer_types is {stated!r}; accepted for {family}: {FULL} for every n-th layer, for "
            "one n"
        )
    if (
        older is not None
        and listed != interval
        and min(listed or num_layers + 1, interval) <= num_layers
    ):
        raise Refusal(
            f"layer_types is {stated!r}, but sliding_window_pattern is {older!r}: one of them is "
            "wrong"
        )
    return listed


def _no_rope_interval(published: Mapping[str, Any], num_layers: int) -> int:
    """Every how many layers one has no positions, of SmolLM's `no_rope_layers`, whose 1 is a layer
    that has them.
    """
    interval = typed(published, "interval", int, "no_rope_layer_interval", 4)
    stated = published.get("no_rope_layers")
    if stated is None:
        return interval
    listed = (
        stated[:num_layers] if isinstance(stated, list) else stated
    )  # as published: a list may be longer
    stated_interval = period(
        [not turns for turns in _listed("no_rope_layers", listed, num_layers, (0, 1))]
    )
    if stated_interval is None:
        raise Refusal(
            f"no_rope_layers is {stated!r}; accepted: a 0 for every n-th layer, for one n"
        )
    return stated_interval


def _listed(key: str, stated: object, num_layers: int, accepted: Sequence[object]) -> list[object]:
    if (
        not isinstance(stated, list)
        or len(stated) != num_layers
        or any(value not in accepted for value in stated)
    ):
        raise Refusal(
            f"{key} is {stated!r}; accepted: {num_layers} times {' or '.join(map(repr, accepted))}"
        )
    return stated


def period(marked: Sequence[bool]) -> int | None:
    """The n for which every n-th entry is marked and no other: 0 where none is, None where there is
    no such n.
    """
    if not any(marked):
        return 0
    n = list(marked).index(True) + 1
    return n if list(marked) == [(index + 1) % n == 0 for index in range(len(marked))] else None


def layer_types(config: decoder.DecoderConfig) -> list[str]:
    """The kind of every layer, as published."""
    sees_all = getattr(config, "sees_all", lambda layer: not window(config, layer))
    return [FULL if sees_all(index) else SLIDING for index in range(config.num_layers)]


def _check_layer_types(published: Mapping[str, Any], config: decoder.DecoderConfig) -> None:
    stated, ours = published.get("layer_types"), layer_types(config)
    if stated is not None and stated != ours:
        raise Refusal(f"layer_types is {stated!r}; accepted with the other keys: {ours!r}")


def window(config: decoder.DecoderConfig, layer: int) -> int:
    """The sliding window of a layer of any family; 0 is none."""
    windows = getattr(config, "window", None)
    return windows(layer) if windows else 0


def computed(config: decoder.DecoderConfig) -> dict[str, Any]:
    """The numbers that a config computes with: equal for two configs of one model, whatever their
    fields.
    """
    fields = {
        key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_PUBLISHED
    }
    fields["head_width"] = decoder.head_width(config)
    rotary = getattr(config, "rotary", None)
    if rotary is None:
        return fields
    shared = {
        key: value
        for key, value in fields.items()
        if key not in OF_LAYERS and not key.startswith("rope_")
    }
    layers = [(window(config, layer), rotary(layer)) for layer in range(config.num_layers)]
    longest = rope.max_positions(config)
    return shared | {
        "layers": layers,
        "longest": longest,
        "beyond": fields.get("rope_long_factors") if longest else None,
    }


def write_config(family: str, config: Any) -> dict[str, Any]:
    """The `config.json`, in the keys of transformers 4 and 5 both, that builds the same model
    there.

    Left to the caller: token ids, which are null here because an absent one means the family's own,
    of another vocabulary; `architectures`, the dtype of the tensors, and the longest context that
    the model was made for (`max_position_embeddings`), where no number here depends on it.
    """
    if family not in FAMILIES:
        raise Refusal(
            f"the family {family!r} has no published form; accepted: {', '.join(FAMILIES)}"
        )
    values = dataclasses.asdict(config)
    if family != "gpt_neox":
        values["head_width"] = decoder.head_width(config)
    published: dict[str, Any] = {"model_type": model_type(family)}
    published |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    published |= {key: accepted[0] for key, accepted in FAMILIES[family].accepted.items()}
    for field, (key, _) in FAMILIES[family].fields.items():
        published[key] = None if field in NULL_IS_ZERO and not values[field] else values[field]
    if "first_window_layer" in values:
        published["use_sliding_window"] = bool(values["sliding_window"])
    if family == "smollm3":
        published["use_sliding_window"] = bool(values["sliding_window"])
        published["no_rope_layers"] = [
            int(config.turns(index)) for index in range(config.num_layers)
        ]
    if FAMILIES[family].interval:
        published["layer_types"] = layer_types(config)
    return published | write_rope(family, values)
