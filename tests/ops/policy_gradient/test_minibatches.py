"""Weights of mean 1 over a minibatch, and ages: whatever micro-batches and devices there are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.ops.corrections import Correction, resolve, staleness_weight
from rlhf_jax.ops.policy_gradient.minibatches import of_minibatch, weight_sums
from rlhf_jax.types import Batch, Mean
from rlhf_jax.updating import init_state, train_step
from tests.ops.policy_gradient import case

TRUNCATED = Correction("proximal", "truncate", normalise=True)


def batch_of(correction: Correction, copies: int = 1, **fields) -> Batch:
    """Rows of the seven tokens with the truncated weights of π / μ."""
    mask = jnp.tile(jnp.asarray(case.MASK), (copies, 1))
    logs = (
        jnp.tile(jnp.asarray(x, jnp.float32), (copies, 1)) for x in (case.POLICY, case.BEHAVIOR)
    )
    weight = staleness_weight(correction, *logs, mask)
    sums = weight_sums(weight, mask, correction.level)
    empty = jnp.zeros((len(mask), 1), jnp.int32)
    return Batch(
        empty, empty > 0, jnp.zeros(mask.shape, jnp.int32), mask, jnp.float32(1.0),
        staleness_RC=weight, weight_sum_R=sums[0], weight_count_R=sums[1], **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("level", "row"),
    [
        ("token", np.array([1.24, 2, 0.75, 1.1, 0.25, 1.1, 2]) / (8.44 / 7)),
        ("sequence", [*[1.267829] * 4, *[0.732171] * 3]),
    ],
)
def test_the_mean_over_the_minibatch_is_1(level, row) -> None:
    """verl's numbers: over tokens, or over rows whose weights are 2 and 1.155."""
    batch = of_minibatch(batch_of(replace(TRUNCATED, level=level)), jnp.int32(0))
    np.testing.assert_allclose(batch.staleness_RC, case.row(*row), rtol=1e-5, atol=1e-7)


def test_rows_that_do_not_count_are_not_in_the_mean() -> None:
    """Nor is an empty row; without a row that counts the weights stay as they are."""
    by_row = replace(TRUNCATED, level="sequence")
    batch = batch_of(by_row, counted_R=jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(
        of_minibatch(batch, jnp.int32(0)).staleness_RC[1, :3], 1.0, rtol=1e-6
    )
    none = of_minibatch(replace(batch, counted_R=jnp.zeros(2)), jnp.int32(0))
    np.testing.assert_array_equal(none.staleness_RC, batch.staleness_RC)
    empty = jnp.zeros((2, 3), bool).at[0].set(True)
    sums = weight_sums(jnp.where(empty, 2.0, 0.0), empty, "sequence")
    np.testing.assert_array_equal(sums, [[2, 0], [1, 0]])


def step(batch: Batch, num_micro_batches: int, rule=None):
    """The params after an update whose gradient is the sum of weights times ages."""

    def objective(params, rows):
        total = jnp.sum(rows.staleness_RC * (1 + rows.age_RC) * jnp.arange(4.0)[None])
        return params["w"] * total, {"weight": Mean(jnp.sum(rows.staleness_RC), jnp.float32(1))}

    state = replace(init_state({"w": jnp.float32(0.0)}, optax.sgd(1.0)), step=jnp.int32(9))
    update = jax.jit(
        lambda state, batch: train_step(
            state, batch, objective=objective, optimizer=optax.sgd(1.0), aggregation="token",
            num_micro_batches=num_micro_batches,
        )
    )  # fmt: skip
    trained, _ = update(state, batch)
    return float(trained.params["w"])


def test_the_update_takes_means_and_ages_of_its_whole_minibatch() -> None:
    version = jnp.where(jnp.tile(case.MASK, (2, 1)), jnp.arange(4)[:, None], 0)
    batch = batch_of(TRUNCATED, 2, version_RC=version)
    weight = np.tile(case.row(*np.array([1.24, 2, 0.75, 1.1, 0.25, 1.1, 2]) / (8.44 / 7)), (2, 1))
    expected = -np.sum(weight * (10 - np.arange(4)[:, None]) * np.arange(4)) / 14
    whole = step(batch, 1)
    assert whole == pytest.approx(expected, rel=1e-5)
    assert step(batch, 2) == pytest.approx(whole, rel=1e-6)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.tree.map(lambda x: jax.device_put(x, rows) if x.ndim else x, batch)
    assert step(placed, 1) == pytest.approx(whole, rel=1e-6)


def test_auto_normalises_where_it_truncates() -> None:
    auto = Correction(normalise=True)
    assert resolve(auto, lag=1).normalise
    assert not resolve(auto).normalise
    Correction(**vars(resolve(auto)))  # a resolved correction is accepted


def test_a_batch_that_asks_for_nothing_is_as_it_was() -> None:
    batch = replace(batch_of(TRUNCATED), weight_sum_R=None, weight_count_R=None)
    assert of_minibatch(batch, jnp.int32(3)) is batch
