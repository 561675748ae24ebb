"""Cosine of the gradients of two updates that follow one another.

    cos = ⟨g_t, g_{t−1}⟩ / (|g_t| |g_{t−1}|)

with g the gradient of a minibatch's mean loss, before it is clipped, over all params that are trained.
Near 1 an update goes on in the direction of the last one; below 0 it takes some of it back, as stale
samples and too large steps make it do. Noise of small minibatches brings it near 0.

The last gradient is part of the optimizer's state, so that it is sharded as the params are, is in
checkpoints, and a resumed run has the same cosines. It costs a copy of the params that are trained.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.ops.once import once
from rlhf_jax.ops.scalars import through
from rlhf_jax.types import Array, Mean


class Remembered(NamedTuple):
    """The state of an optimizer that remembers the last gradient; zeros before the first update."""

    inner: optax.OptState
    last: optax.Updates


@once
def remembering(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer with the same updates, whose state also has the last gradient.

    Args:
      optimizer: whose numbers that a compiled update takes as arguments stay arguments.
    """

    def wrap(update: optax.TransformUpdateFn) -> optax.TransformUpdateFn:
        def updated(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            assert isinstance(state, Remembered)
            steps, inner = update(updates, state.inner, params)
            return steps, Remembered(inner, updates)  # optax calls gradients updates

        return updated

    def init(params: optax.Params) -> optax.OptState:
        return Remembered(optimizer.init(params), jax.tree.map(jnp.zeros_like, params))

    return optax.GradientTransformation(init, through(optimizer.update, wrap))


def cosine(gradients: optax.Updates, last: optax.Updates) -> Mean:
    """The cosine of two gradients as a metric; without a value where one of them is 0, as before the
    first update.

    Args:
      gradients: of an update.
      last: those of the update before it.
    """
    norms = optax.tree.norm(gradients) * optax.tree.norm(last)
    defined = norms > 0
    product = _product(gradients, last) / jnp.where(defined, norms, 1.0)
    return Mean(jnp.where(defined, product, 0.0), defined.astype(jnp.float32))


def _product(a: optax.Updates, b: optax.Updates) -> Array:
    """⟨a, b⟩, summed in float32."""
    total: Array = jnp.float32(0.0)
    for product in jax.tree.leaves(
        jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y), a, b)
    ):
        total += product
    return total
