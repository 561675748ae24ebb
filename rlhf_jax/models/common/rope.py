"""Rotary frequencies, and how published models stretch them for contexts longer than the one that
they began with.

    default     theta^(-2i / K), K the rotary width of a head
    linear      every frequency divided by the factor
    llama3      the slow ones divided, those between two numbers of turns mixed linearly in their turns
    yarn        the slow ones divided, those between two numbers of turns mixed linearly in i; cosines and sines times a scale
                (Peng et al. 2023, arXiv 2309.00071, section 3)
    dynamic     plain up to the original context; beyond it they would depend on the length of the batch
    longrope    divided by a factor each, up to the original context (Ding et al. 2024, arXiv 2402.13753), likewise

"Turns" of a frequency are the rotations that it makes within the original context. The last two are
computed up to the original context alone: see `check_length`.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlhf_jax.models.common import blocks
from rlhf_jax.refusal import Refusal

SCALINGS = ("linear", "llama3", "yarn", "dynamic")
OF_LENGTH = (
    "dynamic",
    "longrope",
)  # beyond the original context their frequencies depend on the longest row of a batch


class RotaryConfig(Protocol):
    """The fields of a family's `Config` that stretch its rotary frequencies."""

    @property
    def rope_theta(self) -> float: ...

    @property
    def rope_scaling(self) -> str: ...

    @property
    def rope_scaling_factor(self) -> float: ...

    @property
    def rope_low_frequency_factor(self) -> float: ...

    @property
    def rope_high_frequency_factor(self) -> float: ...

    @property
    def rope_original_max_positions(self) -> int: ...

    @property
    def rope_attention_factor(self) -> float: ...

    @property
    def rope_truncate(self) -> bool: ...


class Rotary(NamedTuple):
    """Rotary positions of a layer: radians per position for each pair of dimensions, and a scale on
    cosines and sines.

    No frequency at all means that the layer does not turn its queries and keys.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0


NONE = Rotary(())


@lru_cache
def plain(rotary_dims: int, theta: float) -> Rotary:
    """Frequencies that are not stretched.

    Args:
      rotary_dims: dimensions of a head that turn, an even number.
      theta: base of the frequencies.
    """
    return Rotary(tuple(blocks.rotary_frequencies(rotary_dims, theta).tolist()))


@lru_cache
def stretched(config: Any, rotary_dims: int) -> Rotary:
    """Frequencies of `rope_theta`, stretched as the `rope_*` fields of a config say.

    Args:
      config: of a family; frozen and hashable.
      rotary_dims: dimensions of a head that turn, an even number.
    """
    base = blocks.rotary_frequencies(rotary_dims, config.rope_theta)
    factor = config.rope_scaling_factor
    if config.rope_scaling == "longrope":
        factors = np.array(config.rope_short_factors.split(), np.float64)
        return Rotary(tuple((base / factors).tolist()), config.rope_attention_factor)
    if config.rope_scaling == "dynamic" or factor == 1.0:
        return Rotary(tuple(base.tolist()))
    if config.rope_scaling == "linear":
        return Rotary(tuple((base / factor).tolist()))
    share = (
        _by_turns(config, base)
        if config.rope_scaling == "llama3"
        else _by_index(config, rotary_dims)
    )
    scale = config.rope_attention_factor if config.rope_scaling == "yarn" else 1.0
    return Rotary(tuple((base * (share + (1.0 - share) / factor)).tolist()), scale)


def _by_turns(config: RotaryConfig, frequencies: np.ndarray) -> np.ndarray:
    """Share of each frequency that is kept under "llama3", 0 to 1."""
    turns = config.rope_original_max_positions * frequencies / (2 * math.pi)
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _by_index(config: RotaryConfig, rotary_dims: int) -> np.ndarray:
    """Share of each frequency that is kept under "yarn", 0 to 1: a line in i between the indices of
    two numbers of turns.
    """

    def index(turns: float) -> float:
        context = config.rope_original_max_positions / (2 * math.pi * turns)
        return rotary_dims * math.log(context) / (2 * math.log(config.rope_theta))

    first, last = index(config.rope_high_frequency_factor), index(config.rope_low_frequency_factor)
    if config.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dims - 1)
    last += 0.001 * (first == last)  # as published: no division by zero
    return 1.0 - np.clip((np.arange(rotary_dims // 2) - first) / (last - first), 0.0, 1.0)


def max_positions(config: Any) -> int:
    """The longest context that a config's frequencies are computed for; 0 is any."""
    if getattr(config, "rope_scaling", "") not in OF_LENGTH:
        return 0
    plainly = config.rope_scaling == "dynamic" and config.rope_scaling_factor == 1.0
    return 0 if plainly else config.rope_original_max_positions


def check_length(config: Any, num_columns: int) -> None:
    """Raises Refusal, when a program is traced, for more columns than the frequencies are made for.

    Args:
      config: of a family; see `max_positions`.
      num_columns: of the traced program, prompt and completion.
    """
    longest = max_positions(config)
    if longest and num_columns > longest:
        raise Refusal(
            f"rope_scaling {config.rope_scaling!r} is computed up to the original context of "
            f"{longest} positions, and "
            f"{num_columns} are asked for; accepted: lengths.max_prompt_tokens + "
            f"lengths.max_completion_tokens up to {longest}"
        )


def check(config: RotaryConfig, accepted: tuple[str, ...] = SCALINGS) -> None:
    """Raises Refusal, naming the value, for a scaling that the family does not compute."""
    if config.rope_scaling not in accepted:
        raise Refusal(f"rope_scaling is {config.rope_scaling!r}; accepted: {', '.join(accepted)}")
    if config.rope_scaling_factor <= 0:
        raise Refusal(
            f"rope_scaling_factor is {config.rope_scaling_factor}; accepted: above 0, and 1 for "
            "none"
        )
    if config.rope_attention_factor <= 0:
        raise Refusal(
            f"rope_attention_factor is {config.rope_attention_factor}; accepted: above 0, and 1 "
            "for none"
        )
    if config.rope_theta <= 0 or (config.rope_scaling == "yarn" and config.rope_theta <= 1):
        raise Refusal(
            f"rope_theta is {config.rope_theta}; accepted: above 0, and above 1 with rope_scaling "
            "'yarn'"
        )
    low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
    if config.rope_scaling == "llama3" and low >= high:
        raise Refusal(
            f"rope_low_frequency_factor is {low}; accepted: below rope_high_frequency_factor = "
            f"{high}"
        )
    if (
        config.rope_scaling in ("llama3", "yarn")
        and min(low, config.rope_original_max_positions) <= 0
    ):
        raise Refusal(
            f"rope_low_frequency_factor is {low} and rope_original_max_positions "
            f"{config.rope_original_max_positions}; "
            "accepted: above 0"
        )
