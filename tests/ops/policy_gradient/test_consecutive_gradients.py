"""The cosine of consecutive gradients: by hand, and of updates of a linear loss whose gradient is a sum
of rows, in one piece, in micro-batches and on a mesh.
"""

import itertools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax import updating
from rlhf_jax.ops.policy_gradient.consecutive_gradients import Remembered, cosine, remembering
from rlhf_jax.ops.scalars import scalars_of_function

BATCHES = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass
class Rows:
    mask_RC: jax.Array
    slope_RD: jax.Array


def objective(params, rows):
    return jnp.sum(rows.slope_RD @ params["w"]) + 3.0 * params["b"], {}


def test_the_cosine_is_that_of_all_params_together():
    """⟨(1, 2, 2), (2, 0, −1)⟩ = 0 and |·| = 3, √5; with b = (2, 4, 3.9) nearly parallel."""
    first = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(2.0)}
    assert cosine(first, {"a": jnp.array([2.0, 0.0]), "b": jnp.array(-1.0)}).value() == 0.0
    along = cosine(first, {"a": jnp.array([-2.0, -4.0]), "b": jnp.array(-3.9)})
    np.testing.assert_allclose(along.value(), -(2 + 8 + 7.8) / 3 / np.sqrt(4 + 16 + 15.21), 1e-6)
    assert np.isnan(cosine(first, jax.tree.map(jnp.zeros_like, first)).value())


@pytest.mark.parametrize("options", [{}, {"num_micro_batches": 4}, {"sharded": True}])
def test_updates_measure_the_gradients_of_whole_minibatches(options):
    """The gradient of a minibatch is the mean of its slopes, here in float64."""
    options = dict(options)
    sharded, optimizer = options.pop("sharded", False), remembering(optax.adam(0.1))
    step = partial(
        updating.train_step, objective=objective, optimizer=optimizer, aggregation="sequence"
    )
    step = jax.jit(partial(step, **options), donate_argnums=0)
    state = updating.init_state({"w": jnp.ones(4), "b": jnp.float32(0)}, optimizer)
    if sharded:
        mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
        layout = NamedSharding(mesh, PartitionSpec("data"))
        place = partial(jax.tree.map, lambda x: jax.device_put(x, layout) if x.ndim else x)
        state = place(state)
    else:
        place = lambda rows: rows  # noqa: E731
    parts = options.get("num_micro_batches", 1)
    found = []
    for slopes in BATCHES:
        state, metrics = step(state, place(Rows(jnp.ones((8, 1), bool), jnp.asarray(slopes))))
        found.append(metrics["gradient_cosine"].value())
    # the slope of b is 3 in every micro-batch
    gradients = [np.append(b.mean(0, np.float64), 3.0 * parts / 8) for b in BATCHES]
    expected = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(gradients)
    ]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)


def test_an_optimizer_that_remembers_makes_the_same_updates_with_the_same_arguments():
    plain = updating.make_optimizer(updating.OptimizerConfig(max_grad_norm=0.5), 4)
    optimizer, params = remembering(plain), {"w": jnp.ones(3)}
    assert scalars_of_function(optimizer.update) == scalars_of_function(plain.update) != {}
    gradients = {"w": jnp.array([3.0, 4.0, 0.0])}
    steps, state = optimizer.update(gradients, optimizer.init(params), params)
    expected, inner = plain.update(gradients, plain.init(params), params)
    jax.tree.map(
        np.testing.assert_array_equal, (steps, state), (expected, Remembered(inner, gradients))
    )
    assert remembering(plain) is optimizer
