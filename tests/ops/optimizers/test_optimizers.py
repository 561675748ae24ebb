"""The optimizer of traced numbers against optax's AdamW of constants."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.ops.scalars import at, scalars_of_function
from rlhf_jax.updating import OptimizerConfig, make_optimizer

UPDATES, WARMUP, RATE = 11, 3, 3e-4


def optax_schedule(name: str) -> optax.Schedule:
    decay = UPDATES - WARMUP
    linear = optax.linear_schedule(RATE, 0.0, decay)
    after = {
        "linear": linear,
        "cosine": optax.cosine_decay_schedule(RATE, decay),
        "linear_by_round": lambda step: linear((step // 2 + 1) * 2),
    }
    warmup = optax.linear_schedule(0.0, RATE, WARMUP)
    return optax.join_schedules([warmup, after[name]], [WARMUP])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "linear_by_round"])
def test_numbers_as_arguments_give_the_bits_of_optax_with_constants(schedule):
    """All updates of a run, so that every part of a schedule and both bias corrections count."""
    config = OptimizerConfig(RATE, schedule, WARMUP, 0.95, 0.999, 1e-7, 0.1)
    ours = make_optimizer(config, UPDATES, 2)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax_schedule(schedule), 0.95, 0.999, 1e-7, weight_decay=0.1),
    )
    numbers = scalars_of_function(ours.update)

    def run(update, params, grads_SD, numbers=None):
        """Params after each update."""

        def step(carry, grads_D):
            params, state = carry
            updates, state = update(numbers)(grads_D, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, ours.init(params)), grads_SD)[1]

    params = jnp.linspace(-1.0, 1.0, 13)
    scales_S1 = 10.0 ** (jnp.arange(UPDATES) % 5 - 3.0)[:, None]
    grads_SD = jax.random.normal(jax.random.key(0), (UPDATES, 13)) * scales_S1
    as_arguments = jax.jit(
        lambda numbers: run(lambda numbers: at(ours.update, numbers), params, grads_SD, numbers)
    )(numbers)
    as_constants = jax.jit(lambda: run(lambda _: theirs.update, params, grads_SD))()
    np.testing.assert_array_equal(as_arguments, as_constants)
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))
