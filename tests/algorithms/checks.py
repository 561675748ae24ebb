"""What every algorithm must hold, one function a property; `test_sabotage.py` shows that each of them can fail."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.masked import last_index
from rlhf_jax.types import Algorithm, Max, Mean

from .examples import (
    G,
    P,
    random_outputs,
    random_samples,
    random_scores,
    take_rows,
    value_and_gradient,
    with_scores,
)
from .toy import lift

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
        assert all(isinstance(metric, Mean | Max) for metric in metrics.values())


def _fill(array, mask, garbage):
    return None if array is None else jnp.where(mask, array, jnp.asarray(garbage, array.dtype))


def garbage_under_the_mask_changes_nothing(algorithm: Algorithm):
    """Finite or not, what stands under the mask changes neither loss nor gradient nor metrics, not by one bit."""
    samples, scores, batch, outputs = example(algorithm)
    mask_BC = samples.mask_BC
    # Not compiled: XLA turns a product with a converted mask into a selection, which hides the NaN of 0 · NaN.
    for garbage in (1e3, -1e30, np.nan, np.inf):
        dirty_samples = replace(
            samples,
            tokens_BC=_fill(samples.tokens_BC, mask_BC, 7),
            behavior_logprob_BC=_fill(samples.behavior_logprob_BC, mask_BC, garbage),
        )
        dirty_scores = replace(
            scores,
            reference_logprob_BC=_fill(scores.reference_logprob_BC, mask_BC, garbage),
            proximal_logprob_BC=_fill(scores.proximal_logprob_BC, mask_BC, garbage),
            value_BC=_fill(scores.value_BC, mask_BC, garbage),
        )
        dirty_batch = algorithm.credit(dirty_samples, dirty_scores)
        dirty_outputs = jax.tree.map(lambda array, g=garbage: _fill(array, batch.mask_RC, g), outputs)
        for role in algorithm.losses:
            uncompiled = jax.value_and_grad(algorithm.losses[role], has_aux=True)
            expected, expected_gradient = uncompiled(outputs, batch)
            got, gradient = uncompiled(dirty_outputs, dirty_batch)
            assert_trees_equal((got, gradient), (expected, expected_gradient), f"{garbage} under the mask")
            for array in jax.tree.leaves(gradient):
                assert not jnp.any(array[~batch.mask_RC]), "a gradient under the mask"


def prompts_may_be_permuted(algorithm: Algorithm):
    """Prompts in another order give the same sum, and the gradients in that order."""
    samples, scores, _, _ = example(algorithm)
    order_P = np.array([1, 0])
    order_B = (order_P[:, None] * G + np.arange(G)).reshape(-1)
    rows = algorithm.rows_per_prompt(G)
    order_R = (order_P[:, None] * rows + np.arange(rows)).reshape(-1)
    permuted = jax.tree.map(lambda array: array[order_B] if array.ndim else array, (samples, scores))
    batch, permuted_batch = algorithm.credit(samples, scores), algorithm.credit(*permuted)
    assert_trees_close(permuted_batch, take_rows(batch, order_R))
    outputs = random_outputs(batch, SEED)
    for role in algorithm.losses:
        (loss, _), gradient = value_and_gradient(algorithm, role, outputs, batch)
        got, permuted_gradient = value_and_gradient(algorithm, role, take_rows(outputs, order_R), permuted_batch)
        assert_trees_close(got[0], loss)
        assert_trees_close(permuted_gradient, take_rows(gradient, order_R))


def scores_not_asked_for_do_not_matter(algorithm: Algorithm):
    """What `needs` leaves out may be None (as in every example here) and, when given, changes no gradient."""
    samples, scores, batch, outputs = example(algorithm)
    everything = replace(algorithm, needs=frozenset({"reference", "proximal", "value"}))
    extra = random_scores(everything, samples, SEED)
    kept = {name: value for name, value in vars(scores).items() if value is not None}
    full = replace(extra, **kept)
    for role in algorithm.losses:
        (loss, _), gradient = value_and_gradient(algorithm, role, outputs, batch)
        (got, _), got_gradient = value_and_gradient(algorithm, role, outputs, algorithm.credit(samples, full))
        assert_trees_equal((got, got_gradient), (loss, gradient))


def units_stay_together(algorithm: Algorithm):
    """Rows come prompt by prompt, `rows_per_prompt` of each, and a unit never holds rows of two prompts."""
    samples, _, batch, _ = example(algorithm)
    rows, unit = algorithm.rows_per_prompt(G), algorithm.unit_rows(G)
    assert batch.tokens_RC.shape[0] == P * rows
    assert (P * rows) % unit == 0
    largest_R = np.asarray(batch.prompt_tokens_RQ).max(axis=1)  # every prompt has a token of its own
    np.testing.assert_array_equal(largest_R, np.repeat(np.asarray(samples.prompt_tokens_BQ)[::G].max(axis=1), rows))
    assert all(len(set(largest_R[start : start + unit])) == 1 for start in range(0, P * rows, unit))


def micro_batches_add_up(algorithm: Algorithm):
    """Losses, gradients and metrics of any micro-batches add up to those of the whole: a loss is a sum, not a mean."""
    _, _, batch, outputs = example(algorithm)
    unit, num_rows = algorithm.unit_rows(G), batch.tokens_RC.shape[0]
    for role in algorithm.losses:
        (loss, metrics), gradient = value_and_gradient(algorithm, role, outputs, batch)
        for size in (unit, num_rows // 2):
            parts = [np.arange(start, start + size) for start in range(0, num_rows, size)]
            results = [
                value_and_gradient(algorithm, role, take_rows(outputs, rows), take_rows(batch, rows)) for rows in parts
            ]
            assert_trees_close(sum(part_loss for (part_loss, _), _ in results), loss)
            assert_trees_close(jax.tree.map(lambda *g: jnp.concatenate(g), *(g for _, g in results)), gradient)
            for name, metric in metrics.items():
                merged = results[0][0][1][name]
                for (_, part_metrics), _ in results[1:]:
                    merged = merged.merge(part_metrics[name])
                assert_trees_close(merged, metric, name)


def credit_carries_no_gradient(algorithm: Algorithm):
    """No gradient reaches scores or log-probabilities through `credit`."""
    samples, scores, batch, outputs = example(algorithm)

    def loss(scores, behavior_logprob_BC, role):
        credited = algorithm.credit(replace(samples, behavior_logprob_BC=behavior_logprob_BC), scores)
        return algorithm.losses[role](outputs, credited)[0]

    for role in algorithm.losses:
        assert algorithm.losses[role](outputs, batch)[0] != 0
        gradients = jax.grad(loss, argnums=(0, 1))(scores, samples.behavior_logprob_BC, role)
        assert_trees_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def too_few_samples_are_refused(algorithm: Algorithm):
    """Fewer samples a prompt than the algorithm needs is an error while tracing; its minimum is not."""
    fewest = algorithm.min_samples_per_prompt
    samples = random_samples(SEED, samples_per_prompt=fewest)
    jax.eval_shape(algorithm.credit, samples, random_scores(algorithm, samples, SEED))
    if fewest > 1:
        samples = random_samples(SEED, samples_per_prompt=fewest - 1)
        with pytest.raises(ValueError, match=f"samples_per_prompt is {fewest - 1}"):
            jax.eval_shape(algorithm.credit, samples, random_scores(algorithm, samples, SEED))


def _token_and_mask(tokens, mask) -> set[tuple[int, ...]]:
    return set(map(tuple, np.concatenate([tokens, mask], axis=1).tolist()))


def sampled_tokens_are_all_in_the_mask(algorithm: Algorithm):
    """A training row's mask is that of the sample it came from: the EOS is inside."""
    samples, _, batch, _ = example(algorithm)
    rows_B = _token_and_mask(samples.tokens_BC, samples.mask_BC)
    assert _token_and_mask(batch.tokens_RC, batch.mask_RC) <= rows_B


def every_token_is_trained(algorithm: Algorithm):
    """Every sampled token of a row that counts gets a gradient, the last one (an EOS, or the cut) among them."""
    _, _, batch, outputs = example(algorithm)
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    counts_R = np.ones(len(batch.tokens_RC), bool) if batch.weight_R is None else np.asarray(batch.weight_R) > 0
    reached_RC = np.asarray(gradient.logprob_RC) != 0
    counts_R &= reached_RC.any(axis=1)
    assert counts_R.sum() >= 2
    last_R = np.asarray(last_index(batch.mask_RC))
    assert reached_RC[np.arange(len(last_R)), last_R][counts_R].all(), "the last token of a completion is not trained"
    np.testing.assert_array_equal(reached_RC[counts_R], np.asarray(batch.mask_RC)[counts_R])


def a_better_score_raises_its_log_probability(algorithm: Algorithm):
    """Descent raises the log-probability of each prompt's best sample on-policy, and lowers that of its worst."""
    samples, scores, _, _ = example(algorithm)
    on_policy = samples.behavior_logprob_BC
    scores = replace(scores, reference_logprob_BC=None if scores.reference_logprob_BC is None else on_policy)
    scores = replace(scores, proximal_logprob_BC=None if scores.proximal_logprob_BC is None else on_policy)
    batch = algorithm.credit(samples, scores)
    outputs = replace(random_outputs(batch, SEED), logprob_RC=batch.behavior_logprob_RC)
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    first_R = np.asarray(gradient.logprob_RC)[:, 0]
    rows = algorithm.rows_per_prompt(G)
    score_PG = np.asarray(scores.score_B).reshape(P, G)
    for prompt in range(P):
        for pick, sign in ((np.argmax, -1), (np.argmin, 1)):
            sample = prompt * G + pick(score_PG[prompt])
            ours = (np.asarray(batch.tokens_RC) == np.asarray(samples.tokens_BC[sample])).all(axis=1)
            ours &= np.arange(len(ours)) // rows == prompt
            assert ours.any()
            assert (np.sign(first_R[ours]) == sign).all()


def ties_have_no_gradient(algorithm: Algorithm):
    """A pair whose samples score the same has exactly zero loss and gradient, and keeps its place in the batch."""
    if not algorithm.pair:
        pytest.skip("not an algorithm of pairs")
    samples, scores, batch, outputs = example(algorithm)
    rows = algorithm.rows_per_prompt(G)
    tied_scores = with_scores(scores, scores.score_B.at[:G].set(0.25))
    tied_batch = algorithm.credit(samples, tied_scores)
    assert tied_batch.tokens_RC.shape == batch.tokens_RC.shape
    broken = replace(outputs, logprob_RC=outputs.logprob_RC.at[:rows].set(-jnp.inf))
    for given in (outputs, broken):
        (loss, _), gradient = value_and_gradient(algorithm, "policy", given, tied_batch)
        assert not jnp.any(gradient.logprob_RC[:rows])
        assert jnp.all(jnp.any(gradient.logprob_RC[rows:] != 0, axis=1))
        rest = np.arange(rows, P * rows)
        alone, _ = algorithm.losses["policy"](take_rows(outputs, rest), take_rows(tied_batch, rest))
        assert_trees_close(loss, alone)
    all_tied = algorithm.credit(samples, with_scores(scores, jnp.zeros_like(scores.score_B)))
    (loss, _), gradient = value_and_gradient(algorithm, "policy", outputs, all_tied)
    assert loss == 0
    assert_trees_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def equal_rewards_give_no_gradient(algorithm: Algorithm):
    """With a group baseline, samples that score the same give no policy gradient (at KL weight 0)."""
    if not algorithm.group_baseline:
        pytest.skip("no group baseline")
    samples, scores, _, _ = example(algorithm)
    batch = algorithm.credit(samples, with_scores(scores, jnp.full_like(scores.score_B, 0.7)))
    outputs = replace(random_outputs(batch, SEED), logprob_RC=0.9 * samples.behavior_logprob_BC)
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    np.testing.assert_allclose(gradient.logprob_RC, 0.0, atol=1e-6)


def on_policy_ratio_is_one(algorithm: Algorithm):
    """Where an algorithm has a ratio, its metric `ratio` is exactly 1 on-policy."""
    if not algorithm.ratio:
        pytest.skip("no ratio")
    samples, scores, _, _ = example(algorithm)
    if scores.proximal_logprob_BC is not None:
        scores = replace(scores, proximal_logprob_BC=samples.behavior_logprob_BC)
    batch = algorithm.credit(samples, scores)
    outputs = random_outputs(batch, SEED)
    _, metrics = algorithm.losses["policy"](replace(outputs, logprob_RC=batch.behavior_logprob_RC), batch)
    assert metrics["ratio"].value() == 1.0
    _, metrics = algorithm.losses["policy"](replace(outputs, logprob_RC=batch.behavior_logprob_RC - 0.5), batch)
    assert metrics["ratio"].value() < 0.9


def lifts_the_toy_reward(algorithm: Algorithm):
    """Exact on-policy training of a table of logits reaches a reward that a wrong sign or a lost EOS cannot."""
    before, after = lift(algorithm)
    assert before < 0.0, before
    assert after > 2.5, after


ALL = [
    compiles,
    loss_is_float32_and_metrics_merge,
    garbage_under_the_mask_changes_nothing,
    prompts_may_be_permuted,
    scores_not_asked_for_do_not_matter,
    units_stay_together,
    micro_batches_add_up,
    credit_carries_no_gradient,
    too_few_samples_are_refused,
    sampled_tokens_are_all_in_the_mask,
    every_token_is_trained,
    a_better_score_raises_its_log_probability,
    ties_have_no_gradient,
    equal_rewards_give_no_gradient,
    on_policy_ratio_is_one,
    lifts_the_toy_reward,
]
