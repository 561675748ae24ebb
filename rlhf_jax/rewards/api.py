"""What judges a sample: a model's array program, or a host function on decoded text."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rlhf_jax.types import Array, Params, Samples


class ModelReward(Protocol):
    """A role: an array program, placed like any call."""

    def __call__(self, params: Params, samples: Samples) -> Array:
        """Raw scores `[B]`, float32."""
        ...


HostReward = Callable[[Sequence[str], Sequence[str], Sequence[bool]], np.ndarray]
"""(prompts, completions, finished) -> raw scores [B], float32."""
