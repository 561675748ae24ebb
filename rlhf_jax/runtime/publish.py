"""Gives the sampler params of its own: copies, in the sampler's layout and dtype, that no later donation can delete."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.types import Params


def make_publish(shardings: Any, dtype: str) -> Callable[[Params], Params]:
    """A compiled copy of params. `device_put` to the same sharding or `astype` to the same dtype would only alias them."""

    def copy(params: Params) -> Params:
        return jax.tree.map(lambda x: jnp.copy(x.astype(dtype)), params)

    return jax.jit(copy, out_shardings=shardings)
