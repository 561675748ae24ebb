"""What every algorithm must hold as a function of arrays, one check each; `test_sabotage.py` shows
that each can fail.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.types import Algorithm, Metric

from .examples import (
    G,
    P,
    random_outputs,
    random_samples,
    random_scores,
    take_rows,
    value_and_gradient,
)

SEED = 0


def example(algorithm: Algorithm, seed: int = SEED, samples_per_prompt: int = G):
    """Samples, scores, the batch that `credit` makes of them, and a forward pass on it."""
    samples = random_samples(seed, samples_per_prompt=samples_per_prompt)
    scores = random_scores(algorithm, samples, seed)
    batch = algorithm.credit(samples, scores)
    return samples, scores, batch, random_outputs(batch, seed)


def assert_trees_equal(got, expected, message: str = ""):
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=message)


def assert_trees_close(got, expected, message: str = ""):
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=message)


def compiles(algorithm: Algorithm):
    """Credit and losses give under `jit` what they give outside."""
    samples, scores, batch, outputs = example(algorithm)
    assert_trees_close(jax.jit(algorithm.credit)(samples, scores), batch)
    for role in algorithm.losses:
        uncompiled = jax.value_and_grad(algorithm.losses[role], has_aux=True)(outputs, batch)
        assert_trees_close(value_and_gradient(algorithm, role, outputs, batch), uncompiled)


def loss_is_float32_and_metrics_merge(algorithm: Algorithm):
    """The loss is one float32; metrics are carriers that merge."""
    _, _, batch, outputs = example(algorithm)
    for loss in algorithm.losses.values():
        loss_sum, metrics = loss(outputs, batch)
        assert loss_sum.shape == ()
        assert loss_sum.dtype == jnp.float32
        assert metrics
        assert all(isinstance(metric, Metric) for metric in metrics.values())


def _fill(array, mask, garbage):
    return None if array is None else jnp.where(mask, array, jnp.asarray(garbage, array.dtype))


def garbage_under_the_mask_changes_nothing(algorithm: Algorithm):
    """Finite or not, what stands under the mask changes neither loss nor gradient nor metrics, not
    by one bit.
    """
    samples, scores, batch, outputs = example(algorithm)
    mask_BC = samples.mask_BC
    # Not compiled: XLA turns a product with a converted mask into a selection, which hides the NaN
    # of 0 · NaN.
    for garbage in (1e3, -1e30, np.nan, np.inf):
        dirty_samples = replace(
            samples,
            tokens_BC=_fill(samples.tokens_BC, mask_BC, 7),
            behavior_logprob_BC=_fill(samples.behavior_logprob_BC, mask_BC, garbage),
            version_BC=_fill(samples.version_BC, mask_BC, 10**6),
        )
        dirty_scores = replace(
            scores,
            reference_logprob_BC=_fill(scores.reference_logprob_BC, mask_BC, garbage),
            proximal_logprob_BC=_fill(scores.proximal_logprob_BC, mask_BC, garbage),
            value_BC=_fill(scores.value_BC, mask_BC, garbage),
        )
        dirty_batch = algorithm.credit(dirty_samples, dirty_scores)
        dirty_outputs = jax.tree.map(
            lambda array, g=garbage: _fill(array, batch.mask_RC, g), outputs
        )
        for role in algorithm.losses:
            uncompiled = jax.value_and_grad(algorithm.losses[role], has_aux=True)
            expected, expected_gradient = uncompiled(outputs, batch)
            got, gradient = uncompiled(dirty_outputs, dirty_batch)
            assert_trees_equal(
                (got, gradient), (expected, expected_gradient), f"{garbage} under the mask"
            )
            for array in jax.tree.leaves(gradient):
                assert not jnp.any(array[~batch.mask_RC]), "a gradient under the mask"


def prompts_may_be_permuted(algorithm: Algorithm):
    """Prompts in another order give the same sum, and the gradients in that order."""
    samples, scores, _, _ = example(algorithm)
    order_P = np.array([1, 0])
    order_B = (order_P[:, None] * G + np.arange(G)).reshape(-1)
    rows = algorithm.rows_per_prompt(G)
    order_R = (order_P[:, None] * rows + np.arange(rows)).reshape(-1)
    permuted = jax.tree.map(
        lambda array: array[order_B] if array.ndim else array, (samples, scores)
    )
    batch, permuted_batch = algorithm.credit(samples, scores), algorithm.credit(*permuted)
    np.testing.assert_array_equal(
        order_B[permuted_batch.sample_R], take_rows(batch, order_R).sample_R
    )
    permuted_batch = replace(permuted_batch, sample_R=take_rows(batch, order_R).sample_R)
    assert_trees_close(permuted_batch, take_rows(batch, order_R))
    outputs = random_outputs(batch, SEED)
    for role in algorithm.losses:
        (loss, _), gradient = value_and_gradient(algorithm, role, outputs, batch)
        got, permuted_gradient = value_and_gradient(
            algorithm, role, take_rows(outputs, order_R), permuted_batch
        )
        assert_trees_close(got[0], loss)
        assert_trees_close(permuted_gradient, take_rows(gradient, order_R))


def scores_not_asked_for_do_not_matter(algorithm: Algorithm):
    """What `needs` leaves out may be None (as in every example here) and, when given, changes no
    gradient.
    """
    samples, scores, batch, outputs = example(algorithm)
    everything = replace(algorithm, needs=frozenset({"reference", "proximal", "value"}))
    extra = random_scores(everything, samples, SEED)
    kept = {name: value for name, value in vars(scores).items() if value is not None}
    full = replace(extra, **kept)
    for role in algorithm.losses:
        (loss, _), gradient = value_and_gradient(algorithm, role, outputs, batch)
        (got, _), got_gradient = value_and_gradient(
            algorithm, role, outputs, algorithm.credit(samples, full)
        )
        assert_trees_equal((got, got_gradient), (loss, gradient))


def units_stay_together(algorithm: Algorithm):
    """Rows come prompt by prompt, `rows_per_prompt` of each, and a unit never holds rows of two
    prompts.
    """
    samples, _, batch, _ = example(algorithm)
    rows, unit = algorithm.rows_per_prompt(G), algorithm.unit_rows(G)
    assert batch.tokens_RC.shape[0] == P * rows
    assert (P * rows) % unit == 0
    largest_R = np.asarray(batch.prompt_tokens_RQ).max(
        axis=1
    )  # every prompt has a token of its own
    np.testing.assert_array_equal(
        largest_R, np.repeat(np.asarray(samples.prompt_tokens_BQ)[::G].max(axis=1), rows)
    )
    assert all(len(set(largest_R[start : start + unit])) == 1 for start in range(0, P * rows, unit))


def rows_name_their_samples(algorithm: Algorithm):
    """`sample_R` says which sample a row is, so that a ledger can say what was trained on."""
    samples, _, batch, _ = example(algorithm)
    np.testing.assert_array_equal(batch.tokens_RC, np.asarray(samples.tokens_BC)[batch.sample_R])
    np.testing.assert_array_equal(
        batch.behavior_logprob_RC, np.asarray(samples.behavior_logprob_BC)[batch.sample_R]
    )


def micro_batches_add_up(algorithm: Algorithm):
    """Losses, gradients and metrics of any micro-batches add up to those of the whole: a loss is a
    sum, not a mean.
    """
    _, _, batch, outputs = example(algorithm)
    unit, num_rows = algorithm.unit_rows(G), batch.tokens_RC.shape[0]
    for role in algorithm.losses:
        (loss, metrics), gradient = value_and_gradient(algorithm, role, outputs, batch)
        for size in (unit, num_rows // 2):
            parts = [np.arange(start, start + size) for start in range(0, num_rows, size)]
            results = [
                value_and_gradient(
                    algorithm, role, take_rows(outputs, rows), take_rows(batch, rows)
                )
                for rows in parts
            ]
            assert_trees_close(sum(part_loss for (part_loss, _), _ in results), loss)
            assert_trees_close(
                jax.tree.map(lambda *g: jnp.concatenate(g), *(g for _, g in results)), gradient
            )
            for name, metric in metrics.items():
                merged = results[0][0][1][name]
                for (_, part_metrics), _ in results[1:]:
                    merged = merged.merge(part_metrics[name])
                assert_trees_close(merged, metric, name)


def credit_carries_no_gradient(algorithm: Algorithm):
    """No gradient reaches scores or log-probabilities through `credit`."""
    samples, scores, batch, outputs = example(algorithm)

    def loss(scores, behavior_logprob_BC, role):
        credited = algorithm.credit(
            replace(samples, behavior_logprob_BC=behavior_logprob_BC), scores
        )
        return algorithm.losses[role](outputs, credited)[0]

    for role in algorithm.losses:
        assert algorithm.losses[role](outputs, batch)[0] != 0
        gradients = jax.grad(loss, argnums=(0, 1))(scores, samples.behavior_logprob_BC, role)
        assert_trees_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def too_few_samples_are_refused(algorithm: Algorithm):
    """Fewer samples a prompt than the algorithm needs is an error while tracing; its minimum is
    not.
    """
    fewest = algorithm.min_samples_per_prompt
    samples = random_samples(SEED, samples_per_prompt=fewest)
    jax.eval_shape(algorithm.credit, samples, random_scores(algorithm, samples, SEED))
    if fewest > 1:
        samples = random_samples(SEED, samples_per_prompt=fewest - 1)
        with pytest.raises(ValueError, match=f"samples_per_prompt is {fewest - 1}"):
            jax.eval_shape(algorithm.credit, samples, random_scores(algorithm, samples, SEED))


ALL = [
    compiles,
    loss_is_float32_and_metrics_merge,
    garbage_under_the_mask_changes_nothing,
    prompts_may_be_permuted,
    scores_not_asked_for_do_not_matter,
    units_stay_together,
    rows_name_their_samples,
    micro_batches_add_up,
    credit_carries_no_gradient,
    too_few_samples_are_refused,
]
