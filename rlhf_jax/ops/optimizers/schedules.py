"""Learning rates as functions of updates done, of rates and lengths that may be traced.

With s the number of updates, n the length and η the rate:

    linear   η (1 − s / n)        cosine   η (1 + cos(π s / n)) / 2        rising   η s / n

and the value of s = n after n. They are optax's schedules. A count is multiplied by 1 / n or π / n,
because XLA makes that of a division by a constant n: an argument then gives the bits of a constant.
"""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rlhf_jax.types import Array

Number = float | Array


def linear(rate: Number, length: Number) -> optax.Schedule:
    """Falls from `rate` to 0.

    Args:
      rate: of update 0.
      length: updates until it is 0.
    """
    return lambda step: rate * (1 - jnp.clip(step, 0, length) * (1 / length))


def cosine(rate: Number, length: Number) -> optax.Schedule:
    """Falls from `rate` to 0 along half a period of a cosine.

    Args:
      rate: of update 0.
      length: updates until it is 0.
    """

    def schedule(step: ArrayLike) -> Array:
        angle = jnp.minimum(step, length) * (jnp.pi * (1 / length))
        return rate * (0.5 * (1 + jnp.cos(angle)))

    return schedule


def warmed(rate: Number, length: Number, after: optax.Schedule) -> optax.Schedule:
    """Rises from 0 to `rate`, and goes on with another schedule, which counts from there.

    Args:
      rate: at the end of the rise.
      length: updates of the rise, a whole number above 0.
      after: of the updates after it.
    """

    def schedule(step: ArrayLike) -> Array:
        left = 1 - jnp.clip(step, 0, length) * (1 / length)
        later = step - jnp.asarray(length, jnp.int32)
        return jnp.where(jnp.less(step, length), -rate * left + rate, after(later))

    return schedule
