"""What every algorithm must teach, and what it declares of itself; `test_sabotage.py` shows that
each check can fail.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops.masked import last_index
from rlhf_jax.types import Algorithm

from .checks import SEED, assert_trees_close, assert_trees_equal, example
from .examples import G, P, random_outputs, take_rows, value_and_gradient, with_scores
from .toy import lift


def _token_and_mask(tokens, mask) -> set[tuple[int, ...]]:
    return set(map(tuple, np.concatenate([tokens, mask], axis=1).tolist()))


def sampled_tokens_are_all_in_the_mask(algorithm: Algorithm):
    """A training row's mask is that of the sample it came from: the EOS is inside."""
    samples, _, batch, _ = example(algorithm)
    rows_B = _token_and_mask(samples.tokens_BC, samples.mask_BC)
    assert _token_and_mask(batch.tokens_RC, batch.mask_RC) <= rows_B


def every_token_is_trained(algorithm: Algorithm):
    """Every sampled token of a row that counts gets a gradient, the last one (an EOS, or the cut)
    among them.
    """
    samples, scores, _, _ = example(algorithm)
    if scores.proximal_logprob_BC is not None:  # no row is stale
        scores = replace(scores, proximal_logprob_BC=samples.behavior_logprob_BC)
    batch = algorithm.credit(samples, scores)
    outputs = random_outputs(batch, SEED)
    outputs = replace(outputs, logprob_RC=batch.behavior_logprob_RC)  # no ratio is clipped
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    counts_R = (
        np.ones(len(batch.tokens_RC), bool)
        if batch.weight_R is None
        else np.asarray(batch.weight_R) > 0
    )
    reached_RC = np.asarray(gradient.logprob_RC) != 0
    counts_R &= reached_RC.any(axis=1)
    assert counts_R.sum() >= 2
    last_R = np.asarray(last_index(batch.mask_RC))
    assert reached_RC[np.arange(len(last_R)), last_R][counts_R].all(), (
        "the last token of a completion is not trained"
    )
    np.testing.assert_array_equal(reached_RC[counts_R], np.asarray(batch.mask_RC)[counts_R])


def a_better_score_raises_its_log_probability(algorithm: Algorithm):
    """Descent raises the log-probability of the best sample on-policy and lowers that of the worst,
    where it is trained on.

    Best and worst of each prompt; of all samples for an algorithm that compares more than a
    prompt's own.
    """
    samples, scores, _, _ = example(algorithm)
    on_policy = samples.behavior_logprob_BC
    scores = replace(
        scores, reference_logprob_BC=None if scores.reference_logprob_BC is None else on_policy
    )
    scores = replace(
        scores, proximal_logprob_BC=None if scores.proximal_logprob_BC is None else on_policy
    )
    scores = replace(
        scores, value_BC=None if scores.value_BC is None else jnp.zeros_like(on_policy)
    )
    batch = algorithm.credit(samples, scores)
    outputs = replace(random_outputs(batch, SEED), logprob_RC=batch.behavior_logprob_RC)
    _, gradient = value_and_gradient(algorithm, "policy", outputs, batch)
    first_R = np.asarray(gradient.logprob_RC)[:, 0]
    rows = algorithm.rows_per_prompt(G)
    compared = G if algorithm.group_baseline or algorithm.pair or rows == 1 else P * G
    score_SG = np.asarray(scores.score_B).reshape(-1, compared)
    for start, score_G in enumerate(score_SG):
        for pick, sign in ((np.argmax, -1), (np.argmin, 1)):
            sample = start * compared + pick(score_G)
            ours = (np.asarray(batch.tokens_RC) == np.asarray(samples.tokens_BC[sample])).all(
                axis=1
            )
            ours &= np.arange(len(ours)) // rows == sample // G
            if rows == 1 and sign == 1:
                assert not ours.any(), "the worst sample is trained on"
                continue
            assert ours.any()
            assert (np.sign(first_R[ours]) == sign).all()


def ties_have_no_gradient(algorithm: Algorithm):
    """A pair whose samples score the same has exactly zero loss and gradient, and keeps its place
    in the batch.
    """
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
    """With a group baseline, samples of a prompt that score the same give no policy gradient (at KL
    weight 0).

    Every prompt has a level of its own, so that rows that are no prompt's group differ.
    """
    if not algorithm.group_baseline:
        pytest.skip("no group baseline")
    samples, scores, _, _ = example(algorithm)
    level_B = jnp.repeat(0.7 - 2.0 * jnp.arange(P), G)
    batch = algorithm.credit(samples, with_scores(scores, level_B))
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
    assert batch.behavior_logprob_RC is not None
    _, metrics = algorithm.losses["policy"](
        replace(outputs, logprob_RC=batch.behavior_logprob_RC), batch
    )
    assert metrics["ratio"].value() == 1.0
    _, metrics = algorithm.losses["policy"](
        replace(outputs, logprob_RC=batch.behavior_logprob_RC - 0.5), batch
    )
    assert metrics["ratio"].value() < 0.9


def lifts_the_toy_reward(algorithm: Algorithm):
    """Exact on-policy training of a table of logits reaches a reward that a wrong sign or a lost
    EOS cannot.
    """
    before, after = lift(algorithm)
    assert before < 0.0, before
    assert after > 2.5, after


ALL = [
    sampled_tokens_are_all_in_the_mask,
    every_token_is_trained,
    a_better_score_raises_its_log_probability,
    ties_have_no_gradient,
    equal_rewards_give_no_gradient,
    on_policy_ratio_is_one,
    lifts_the_toy_reward,
]

WITHOUT_KL = [a_better_score_raises_its_log_probability, equal_rewards_give_no_gradient]
"""Of scores alone: a penalty for distance from a random reference would say otherwise."""
