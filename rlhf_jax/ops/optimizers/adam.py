"""Adam's step, as `optax.scale_by_adam` has it, of numbers that may be traced.

Kingma, Ba 2014, *Adam*, arXiv 1412.6980, algorithm 1, with t the number of gradients:

    m = β1 m + (1 − β1) g        v = β2 v + (1 − β2) g²
    step = m / (1 − β1^t) / (√(v / (1 − β2^t)) + ε)

Where we depart from optax: the weights 1 − β are given beside the betas. From a β that is traced in
float32 the weight would differ, by 1e-5 of its value at 0.999, from that of a constant β.
"""

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.types import Array

Number = float | Array


def scale_by_adam(
    betas: tuple[Number, Number], new_weights: tuple[Number, Number], epsilon: Number
) -> optax.GradientTransformation:
    """Adam's step without a learning rate; the state is optax's, `optax.ScaleByAdamState`.

    Args:
      betas: decay of the mean of gradients, and of squared gradients.
      new_weights: 1 - beta of each, from float64.
      epsilon: added to the denominator of a step.
    """
    (mean_decay, square_decay), (mean_weight, square_weight) = betas, new_weights

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        mean = jax.tree.map(lambda g, m: mean_weight * g + mean_decay * m, updates, state.mu)
        square = jax.tree.map(
            lambda g, v: square_weight * g**2 + square_decay * v, updates, state.nu
        )
        count = optax.safe_increment(state.count)
        steps = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + epsilon),
            optax.tree.bias_correction(mean, mean_decay, count),
            optax.tree.bias_correction(square, square_decay, count),
        )
        square = optax.tree.cast_like(square, state.nu)
        return steps, optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)
