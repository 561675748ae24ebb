"""Rotary positions of a published `config.json`, read and written in the keys of transformers 4 and
5.

Before version 5: `rope_theta`, `rope_scaling`, and GPT-NeoX's `rotary_pct` and `rotary_emb_base`.
Since: all of them within `rope_parameters`, which families with two kinds of layers have once for
each kind.
"""

import math
from collections.abc import Mapping
from typing import Any

from rlhf_jax.models.common import rope as rotary
from rlhf_jax.pretrained.published_families import FAMILIES, REQUIRED
from rlhf_jax.pretrained.published_values import KeyPath, agreed, at, number
from rlhf_jax.refusal import Refusal

PLACES = ("rope_parameters", "rope_scaling")
FULL, SLIDING = "full_attention", "sliding_attention"
ORIGINAL = "original_max_position_embeddings"
PHI3_ORIGINAL = 4096  # which transformers takes for Phi whatever `rope_scaling` says
PHI3_TYPES = {"su": "longrope", "yarn": "longrope"}  # names that older files of Phi have for it
KEYS = {  # all that is read here, at the top of a config.json
    *PLACES,
    "rope_theta",
    "rope_local_base_freq",
    "rotary_pct",
    "rotary_emb_base",
    "partial_rotary_factor",
    "max_position_embeddings",
    ORIGINAL,
}


class Rope:
    """The parameters of one kind of layers, wherever they are written."""

    def __init__(self, family: str, published: Mapping[str, Any], prefixes: tuple[KeyPath, ...]):
        self.family, self.published, self.prefixes = family, published, prefixes
        for prefix in prefixes:
            parameters = at(published, prefix)
            flat = isinstance(parameters, Mapping) and not any(
                isinstance(value, Mapping) for value in parameters.values()
            )
            if parameters is not None and not flat:
                raise Refusal(
                    f"{'.'.join(prefix)} is {parameters!r}; accepted for {family}: one flat object for "
                    "all layers, or null"
                )

    def key_paths(self, key: str) -> list[KeyPath]:
        return [(*prefix, key) for prefix in self.prefixes]

    def number(self, key: str, default: object, *more: KeyPath) -> float:
        return number(self.published, default, *self.key_paths(key), *more)

    def type(self, *accepted: str, older: Mapping[str, str] | None = None) -> str:
        """The way of stretching, a name of `models/common/rope.py` or "default".

        Raises Refusal for any other.
        """
        published = agreed(
            self.published, "default", *self.key_paths("rope_type"), *self.key_paths("type")
        )
        name = (older or {}).get(published, published) if isinstance(published, str) else published
        if not isinstance(name, str) or name not in accepted:
            raise Refusal(
                f"rope_type is {published!r}; accepted for {self.family}: {', '.join(accepted)}"
            )
        return name

    def max_positions(self) -> float:
        return number(
            self.published, FAMILIES[self.family].max_positions, ("max_position_embeddings",)
        )

    def original(self) -> float:
        """The context that is stretched; transformers takes max_position_embeddings where the file
        does not say.
        """
        positions = self._original()
        if positions < 2:
            raise Refusal(f"{ORIGINAL} is {positions!r}; accepted: at least 2")
        return positions

    def _original(self) -> float:
        paths = [*self.key_paths(ORIGINAL), (ORIGINAL,)]
        if self.family == "phi3" and ORIGINAL not in self.published:
            positions = agreed(self.published, PHI3_ORIGINAL, *paths)
            if positions != PHI3_ORIGINAL:
                raise Refusal(
                    f"rope_scaling.{ORIGINAL} is {positions!r}, but there is no {ORIGINAL} beside it; "
                    "accepted: both"
                )
            return PHI3_ORIGINAL
        return number(self.published, self.max_positions(), *paths)


def read_rope(family: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary fields of a family's Config.

    Raises Refusal, naming key and value, for keys that contradict one another and for positions
    that are not computed.
    """
    if family == "gpt_neox":
        return _read_neox(published)
    if FAMILIES[family].interval:
        return _read_of_layers(family, published)
    rope = Rope(family, published, tuple((key,) for key in PLACES))
    theta = {"rope_theta": rope.number("rope_theta", FAMILIES[family].theta, ("rope_theta",))}
    fraction = rope.number("partial_rotary_factor", 1.0, ("partial_rotary_factor",))
    if family == "phi3":
        kind = rope.type("default", "longrope", older=PHI3_TYPES)
        return theta | {"rotary_fraction": fraction} | _scaling(rope, kind)
    if fraction != 1.0:
        raise Refusal(f"partial_rotary_factor is {fraction!r}; accepted for {family}: 1.0")
    return theta | _scaling(rope, rope.type("default", *rotary.SCALINGS))


def _scaling(rope: Rope, kind: str) -> dict[str, Any]:
    if kind == "default":
        return {}
    values: dict[str, Any] = {"rope_scaling": kind}
    if kind == "dynamic":
        return values | {
            "rope_scaling_factor": rope.number("factor", REQUIRED),
            "rope_original_max_positions": int(rope.max_positions()),
        }
    if kind == "linear":
        return values | {"rope_scaling_factor": rope.number("factor", REQUIRED)}
    original = rope.original()
    values["rope_original_max_positions"] = int(original)
    if kind == "llama3":
        return values | {
            "rope_scaling_factor": rope.number("factor", REQUIRED),
            "rope_low_frequency_factor": rope.number("low_freq_factor", REQUIRED),
            "rope_high_frequency_factor": rope.number("high_freq_factor", REQUIRED),
        }
    factor = rope.number("factor", rope.max_positions() / original)
    values["rope_scaling_factor"] = factor
    return values | (_yarn(rope, factor) if kind == "yarn" else _longrope(rope, factor, original))


def _yarn(rope: Rope, factor: float) -> dict[str, Any]:
    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    # As published: 0 or null stands for a missing number.
    scale, scale_all = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    factor_of_scores = grown(scale) / grown(scale_all) if scale and scale_all else grown(1.0)
    truncate = agreed(rope.published, True, *rope.key_paths("truncate"))
    if not isinstance(truncate, bool) or (not truncate and len(rope.prefixes[0]) > 1):
        accepted = "true" if len(rope.prefixes[0]) > 1 else "true or false"
        raise Refusal(
            f"truncate of rope_type 'yarn' is {truncate!r}; accepted for {rope.family}: {accepted}"
        )
    return {
        "rope_low_frequency_factor": rope.number("beta_slow", 1.0) or 1.0,
        "rope_high_frequency_factor": rope.number("beta_fast", 32.0) or 32.0,
        "rope_attention_factor": rope.number("attention_factor", factor_of_scores),
        "rope_truncate": truncate,
    }


def _longrope(rope: Rope, factor: float, original: float) -> dict[str, Any]:
    def factors(key: str) -> str:
        factors_of_pairs = agreed(rope.published, REQUIRED, *rope.key_paths(key))
        if not isinstance(factors_of_pairs, list) or not all(
            isinstance(value, int | float) and value > 0 for value in factors_of_pairs
        ):
            raise Refusal(
                f"{key} of rope_type 'longrope' is {factors_of_pairs!r}; accepted: a list of numbers above 0"
            )
        return " ".join(str(float(value)) for value in factors_of_pairs)

    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "rope_short_factors": factors("short_factor"),
        "rope_long_factors": factors("long_factor"),
        "rope_attention_factor": rope.number("attention_factor", grown),
    }


def _read_of_layers(family: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a family whose layers with a window have positions of their own: plain ones."""
    newer = published.get("rope_parameters")
    if newer is not None and not (isinstance(newer, Mapping) and newer.keys() <= {FULL, SLIDING}):
        raise Refusal(
            f"rope_parameters is {newer!r}; accepted for {family}: an object with {FULL} and "
            f"{SLIDING}"
        )
    rope = Rope(family, published, (("rope_parameters", FULL), ("rope_scaling",)))
    local = Rope(family, published, (("rope_parameters", SLIDING),))
    for each in (rope, local):
        if each.number("partial_rotary_factor", 1.0, ("partial_rotary_factor",)) != 1.0:
            raise Refusal(f"partial_rotary_factor is not 1; accepted for {family}: 1.0")
    if local.type("default", *rotary.SCALINGS) != "default":
        raise Refusal(
            f"rope_parameters.{SLIDING} is {newer!r}; accepted for {family}: positions that are "
            "not stretched"
        )
    default = FAMILIES[family].theta
    theta = rope.number("rope_theta", default, ("rope_theta",))
    scaling = _scaling(rope, rope.type("default", *rotary.SCALINGS))
    if family == "gemma3":
        local_theta = local.number("rope_theta", 10_000.0, ("rope_local_base_freq",))
        return {"rope_theta": theta, "rope_local_theta": local_theta} | scaling
    # Without `rope_parameters`, libraries differ on the positions of layers with a window unless
    # theta is the default.
    if (local_theta := local.number("rope_theta", default)) != theta:
        raise Refusal(
            f"rope_theta is {theta!r}, and {local_theta!r} for the layers with a window; accepted "
            f"for {family}: one value, "
            f"in rope_parameters.{FULL} and rope_parameters.{SLIDING} where it is not {default!r}"
        )
    return {"rope_theta": theta} | scaling


def _read_neox(published: Mapping[str, Any]) -> dict[str, Any]:
    rope = Rope("gpt_neox", published, tuple((key,) for key in PLACES))
    rope.type("default")
    theta = rope.number("rope_theta", 10_000.0, ("rotary_emb_base",))
    fraction = rope.number("partial_rotary_factor", 0.25, ("rotary_pct",))
    for key, value in {"rope_theta": theta, "partial_rotary_factor": fraction}.items():
        if published.get(key) not in (
            None,
            value,
        ):  # not read by transformers, which has other names for them at the top
            raise Refusal(
                f"{key} is {published[key]!r}, but {value!r} by the keys of gpt_neox; accepted: "
                "one value"
            )
    return {"rope_theta": theta, "rotary_fraction": fraction}


def write_rope(family: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary keys of a `config.json`, for both generations of readers."""
    theta = {"rope_theta": fields["rope_theta"]}
    if family == "gpt_neox":
        fraction = fields["rotary_fraction"]
        nested = theta | {"rope_type": "default", "partial_rotary_factor": fraction}
        return {
            "rotary_emb_base": fields["rope_theta"],
            "rotary_pct": fraction,
            "rope_parameters": nested,
        }
    scaling = _write_scaling(fields)
    parameters: dict[str, Any] = theta | (scaling or {"rope_type": "default"})
    more: dict[str, Any] = {}
    if family == "phi3":
        more = {
            "partial_rotary_factor": fields["rotary_fraction"],
            ORIGINAL: fields["rope_original_max_positions"],
        }
        parameters |= {"partial_rotary_factor": fields["rotary_fraction"]}
    if fields["rope_scaling"] == "dynamic":
        more |= {"max_position_embeddings": fields["rope_original_max_positions"]}
    if FAMILIES[family].interval:
        local = fields.get("rope_local_theta", fields["rope_theta"])
        parameters = {FULL: parameters, SLIDING: {"rope_theta": local, "rope_type": "default"}}
        more |= {"rope_local_base_freq": local} if family == "gemma3" else {}
    return theta | more | {"rope_scaling": scaling, "rope_parameters": parameters}


def _write_scaling(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = fields["rope_scaling"]
    if fields["rope_scaling_factor"] == 1.0 and kind != "longrope":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": fields["rope_scaling_factor"]}
    if kind in ("llama3", "yarn", "longrope"):
        scaling[ORIGINAL] = fields["rope_original_max_positions"]
    if kind == "llama3":
        scaling["low_freq_factor"] = fields["rope_low_frequency_factor"]
        scaling["high_freq_factor"] = fields["rope_high_frequency_factor"]
    if kind in ("yarn", "longrope"):
        scaling["attention_factor"] = fields["rope_attention_factor"]
    if kind == "yarn":
        scaling |= {
            "beta_slow": fields["rope_low_frequency_factor"],
            "beta_fast": fields["rope_high_frequency_factor"],
        }
        scaling |= {"truncate": fields["rope_truncate"]}
    if kind == "longrope":
        scaling["short_factor"] = [float(factor) for factor in fields["rope_short_factors"].split()]
        scaling["long_factor"] = [float(factor) for factor in fields["rope_long_factors"].split()]
    return scaling
