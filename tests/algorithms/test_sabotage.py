"""The battery's own test: algorithms broken in one place each, and the check that must notice."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.online_dpo import Config, online_dpo
from rlhf_jax.ops.losses import dpo
from rlhf_jax.ops.masked import last_index, masked_sum
from rlhf_jax.types import Algorithm, Batch

from . import checks, lessons
from .leave_one_out import leave_one_out
from .test_battery import algorithm_of

PAIRS, GROUPS = online_dpo(Config()), leave_one_out()
GRPO, PPO, COPG = (
    algorithm_of(name, lessons.WITHOUT_KL[0]) for name in ("grpo", "ppo", "copg")
)  # KL weight 0
PMD, A2PO = algorithm_of("pmd"), algorithm_of("a2po")


def with_credit(algorithm: Algorithm, change) -> Algorithm:
    """The algorithm with `change(batch, samples, scores)` after its credit."""
    return replace(
        algorithm,
        credit=lambda samples, scores: change(algorithm.credit(samples, scores), samples, scores),
    )


def with_loss(algorithm: Algorithm, change) -> Algorithm:
    """The algorithm with the policy's loss replaced by `change(loss, outputs, batch)`."""
    loss = algorithm.losses["policy"]
    return replace(
        algorithm,
        losses={**algorithm.losses, "policy": lambda outputs, batch: change(loss, outputs, batch)},
    )


def wrong_sign(loss, outputs, batch):
    loss_sum, metrics = loss(outputs, batch)
    return -loss_sum, metrics


def mean_over_rows(loss, outputs, batch):
    loss_sum, metrics = loss(outputs, batch)
    return loss_sum / len(batch.tokens_RC), metrics


def off_by_one(loss, outputs, batch):
    return loss(replace(outputs, logprob_RC=jnp.roll(outputs.logprob_RC, 1, axis=1)), batch)


def _drop_last(mask_RC):
    return mask_RC & (jnp.arange(mask_RC.shape[1])[None] != last_index(mask_RC)[:, None])


def eos_outside_the_mask(batch, samples, scores):
    return replace(batch, mask_RC=_drop_last(batch.mask_RC))


def eos_outside_the_loss(loss, outputs, batch):
    return loss(outputs, replace(batch, mask_RC=_drop_last(batch.mask_RC)))


def no_mask(loss, outputs, batch):
    return loss(outputs, replace(batch, mask_RC=jnp.ones_like(batch.mask_RC)))


def multiplied_mask(loss, outputs, batch):
    mask_RC = batch.mask_RC.astype(jnp.float32)
    margin_U = _margin(jnp.sum((outputs.logprob_RC - batch.reference_logprob_RC) * mask_RC, axis=1))
    return jnp.sum(dpo(margin_U, 0.1) * batch.weight_R[::2]), loss(outputs, batch)[1]


def values_of_other_prompts(batch, samples, scores):
    first_C = batch.advantage_RC[:1] - scores.score_B[0]
    return replace(batch, advantage_RC=(scores.score_B[:, None] + first_C) * batch.mask_RC)


def _margin(sum_R):
    pairs_U2 = sum_R.reshape(-1, 2)
    return pairs_U2[:, 0] - pairs_U2[:, 1]


def tie_not_zeroed(batch, samples, scores):
    return replace(batch, weight_R=jnp.ones_like(batch.weight_R))


def tie_left_out_of_the_batch(batch, samples, scores):
    keep_R = np.asarray(batch.weight_R) > 0
    return jax.tree.map(lambda array: array[keep_R] if array.ndim else array, batch)


def chosen_and_rejected_apart(batch: Batch, samples, scores):
    order_R = np.concatenate(
        [np.arange(0, len(batch.tokens_RC), 2), np.arange(1, len(batch.tokens_RC), 2)]
    )
    return jax.tree.map(lambda array: array[order_R] if array.ndim else array, batch)


def gradient_through_credit(batch, samples, scores):
    return replace(
        batch,
        reference_logprob_RC=batch.reference_logprob_RC + jnp.sum(scores.score_B) * batch.mask_RC,
    )


def normalised_in_the_loss(loss, outputs, batch):
    loss_sum, metrics = loss(outputs, batch)
    spread = jnp.std(jnp.sum(outputs.logprob_RC, axis=1))
    return loss_sum / jax.lax.stop_gradient(spread), metrics


def no_baseline(batch, samples, scores):
    return replace(batch, advantage_RC=jnp.where(samples.mask_BC, scores.score_B[:, None], 0.0))


def ratio_to_the_reference(loss, outputs, batch):
    return loss(outputs, replace(batch, behavior_logprob_RC=batch.behavior_logprob_RC - 0.1))


def needs_more_than_it_says(batch, samples, scores):
    extra = 0.0 if scores.value_BC is None else jnp.sum(scores.value_BC)
    return replace(batch, reference_logprob_RC=batch.reference_logprob_RC.at[::2].add(extra))


def counts_position_of_prompts(batch, samples, scores):
    place_R = jnp.arange(len(batch.tokens_RC), dtype=jnp.float32)
    return replace(
        batch, reference_logprob_RC=batch.reference_logprob_RC - place_R[:, None] * batch.mask_RC
    )


def _sample_major(array, num_prompts):
    """Rows as if sample i of every prompt came before sample i + 1 of any: a reshape in the wrong
    order.
    """
    return array.reshape(num_prompts, -1).T.reshape(-1, *array.shape[1:])


def groups_of_other_prompts(algorithm: Algorithm) -> Algorithm:
    """Scores are grouped as if they were sample-major, and what comes of them put back in their
    rows.
    """

    def credit(samples, scores):
        num_prompts = len(scores.score_B) // samples.samples_per_prompt
        order_B = _sample_major(jnp.arange(len(scores.score_B)), num_prompts)
        batch = algorithm.credit(samples, replace(scores, score_B=scores.score_B[order_B]))
        row_R = batch.advantage_RC[:, 0][jnp.argsort(order_B)]
        return replace(batch, advantage_RC=jnp.where(batch.mask_RC, row_R[:, None], 0.0))

    return replace(algorithm, credit=credit)


def contrasted_with_other_prompts(loss, outputs, batch):
    order_R = _sample_major(jnp.arange(len(batch.score_R)), len(batch.score_R) // batch.group_rows)
    shuffled = jax.tree.map(lambda array: array[order_R] if array.ndim else array, (outputs, batch))
    return loss(*shuffled)


def whitened_over_padding(batch, samples, scores):
    padded_RC = jnp.where(batch.mask_RC, batch.advantage_RC, scores.value_BC)
    return replace(batch, advantage_RC=batch.advantage_RC / jnp.std(padded_RC))


def score_after_the_end(batch, samples, scores):
    """The scores of finished samples fall on the padding that follows an EOS, and are lost there."""
    reached_RC = batch.mask_RC & ~samples.finished_B[:, None]
    return replace(batch, advantage_RC=jnp.where(reached_RC, batch.advantage_RC, 0.0))


def contrast_without_baseline(loss, outputs, batch):
    logprob_R = masked_sum(outputs.logprob_RC, batch.mask_RC, dim=1)
    return -jnp.sum(batch.score_R * logprob_R), loss(outputs, batch)[1]


def unmasked_contrast(loss, outputs, batch):
    logprob_R = jnp.sum(outputs.logprob_RC * batch.mask_RC.astype(jnp.float32), axis=1)
    return -jnp.sum(batch.score_R * logprob_R), loss(outputs, batch)[1]


def contrast_of_the_whole_minibatch(loss, outputs, batch):
    logprob_R = masked_sum(outputs.logprob_RC, batch.mask_RC, dim=1)
    return -jnp.sum(batch.score_R * (logprob_R - jnp.mean(logprob_R))), loss(outputs, batch)[1]


def square_of_the_padded_row(loss, outputs, batch):
    log_RC = (outputs.logprob_RC - batch.behavior_logprob_RC) * batch.mask_RC.astype(jnp.float32)
    return jnp.sum(jnp.square(log_RC.sum(1) - batch.advantage_RC[:, 0])), loss(outputs, batch)[1]


def length_of_the_minibatch(loss, outputs, batch):
    loss_sum, metrics = loss(outputs, batch)
    return loss_sum / jnp.sum(batch.mask_RC), metrics


def looks_at_a_value(batch, samples, scores):
    return batch if float(scores.score_B[0]) > -100 else None


def plain_numbers_for_metrics(loss, outputs, batch):
    loss_sum, metrics = loss(outputs, batch)
    return loss_sum, {
        name: getattr(metric, "total", jnp.float32(0)) for name, metric in metrics.items()
    }


CASES = [
    (with_credit(PAIRS, looks_at_a_value), checks.compiles),
    (with_loss(PAIRS, plain_numbers_for_metrics), checks.loss_is_float32_and_metrics_merge),
    (with_loss(PAIRS, wrong_sign), lessons.lifts_the_toy_reward),
    (with_loss(GROUPS, wrong_sign), lessons.lifts_the_toy_reward),
    (with_loss(PAIRS, wrong_sign), lessons.a_better_score_raises_its_log_probability),
    (with_loss(GROUPS, wrong_sign), lessons.a_better_score_raises_its_log_probability),
    (with_loss(PAIRS, off_by_one), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(PAIRS, off_by_one), lessons.every_token_is_trained),
    (with_loss(GROUPS, off_by_one), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(GROUPS, off_by_one), lessons.every_token_is_trained),
    (with_credit(PAIRS, eos_outside_the_mask), lessons.lifts_the_toy_reward),
    (with_credit(GROUPS, eos_outside_the_mask), lessons.lifts_the_toy_reward),
    (with_credit(PAIRS, eos_outside_the_mask), lessons.sampled_tokens_are_all_in_the_mask),
    (with_loss(PAIRS, eos_outside_the_loss), lessons.every_token_is_trained),
    (with_loss(GROUPS, eos_outside_the_loss), lessons.every_token_is_trained),
    (with_loss(PAIRS, no_mask), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(GROUPS, no_mask), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(PAIRS, multiplied_mask), checks.garbage_under_the_mask_changes_nothing),
    (with_credit(PAIRS, tie_not_zeroed), lessons.ties_have_no_gradient),
    (with_credit(PAIRS, tie_left_out_of_the_batch), lessons.ties_have_no_gradient),
    (with_credit(PAIRS, chosen_and_rejected_apart), checks.units_stay_together),
    (with_loss(PAIRS, mean_over_rows), checks.micro_batches_add_up),
    (with_loss(GROUPS, mean_over_rows), checks.micro_batches_add_up),
    (with_loss(GROUPS, normalised_in_the_loss), checks.micro_batches_add_up),
    (with_credit(PAIRS, gradient_through_credit), checks.credit_carries_no_gradient),
    (replace(PAIRS, min_samples_per_prompt=3), checks.too_few_samples_are_refused),
    (replace(PAIRS, min_samples_per_prompt=1), checks.too_few_samples_are_refused),
    (replace(PAIRS, unit=3), checks.units_stay_together),
    (replace(PAIRS, rows_per_prompt=lambda samples_per_prompt: 3), checks.units_stay_together),
    (with_credit(GROUPS, no_baseline), lessons.equal_rewards_give_no_gradient),
    (with_loss(GROUPS, ratio_to_the_reference), lessons.on_policy_ratio_is_one),
    (with_credit(PAIRS, needs_more_than_it_says), checks.scores_not_asked_for_do_not_matter),
    (with_credit(PAIRS, counts_position_of_prompts), checks.prompts_may_be_permuted),
    *(
        (with_loss(one, wrong_sign), lessons.a_better_score_raises_its_log_probability)
        for one in (GRPO, PPO, COPG)
    ),
    *((with_loss(one, wrong_sign), lessons.lifts_the_toy_reward) for one in (GRPO, PPO)),
    *(
        (with_credit(one, eos_outside_the_mask), lessons.sampled_tokens_are_all_in_the_mask)
        for one in (GRPO, PPO, COPG)
    ),
    *(
        (with_loss(one, eos_outside_the_loss), lessons.every_token_is_trained)
        for one in (GRPO, PPO, COPG)
    ),
    *((with_loss(one, off_by_one), lessons.every_token_is_trained) for one in (GRPO, PPO, COPG)),
    *(
        (with_loss(one, no_mask), checks.garbage_under_the_mask_changes_nothing)
        for one in (GRPO, PPO, COPG)
    ),
    *((with_loss(one, mean_over_rows), checks.micro_batches_add_up) for one in (GRPO, PPO, COPG)),
    (groups_of_other_prompts(GRPO), lessons.equal_rewards_give_no_gradient),
    (with_loss(COPG, contrasted_with_other_prompts), lessons.equal_rewards_give_no_gradient),
    (with_credit(GRPO, no_baseline), lessons.equal_rewards_give_no_gradient),
    (with_loss(COPG, contrast_without_baseline), lessons.equal_rewards_give_no_gradient),
    (with_loss(COPG, unmasked_contrast), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(COPG, contrast_of_the_whole_minibatch), checks.micro_batches_add_up),
    (with_loss(PMD, wrong_sign), lessons.a_better_score_raises_its_log_probability),
    (with_loss(PMD, wrong_sign), lessons.lifts_the_toy_reward),
    (with_loss(A2PO, wrong_sign), lessons.lifts_the_toy_reward),
    (with_loss(A2PO, no_mask), checks.garbage_under_the_mask_changes_nothing),
    (with_credit(A2PO, values_of_other_prompts), checks.prompts_may_be_permuted),
    (with_loss(PMD, off_by_one), lessons.every_token_is_trained),
    (with_loss(PMD, eos_outside_the_loss), lessons.every_token_is_trained),
    (with_loss(PMD, no_mask), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(PMD, square_of_the_padded_row), checks.garbage_under_the_mask_changes_nothing),
    (with_loss(PMD, length_of_the_minibatch), checks.micro_batches_add_up),
    (groups_of_other_prompts(PMD), checks.prompts_may_be_permuted),
    (with_credit(PPO, whitened_over_padding), checks.garbage_under_the_mask_changes_nothing),
    (with_credit(PPO, score_after_the_end), lessons.lifts_the_toy_reward),
    (with_loss(GRPO, ratio_to_the_reference), lessons.on_policy_ratio_is_one),
    (with_loss(PPO, ratio_to_the_reference), lessons.on_policy_ratio_is_one),
]


def _name(value) -> str:
    return getattr(value, "__name__", "algorithm")


@pytest.mark.parametrize(("broken", "check"), CASES, ids=_name)
def test_the_check_notices(broken, check):
    with pytest.raises(
        (AssertionError, ValueError, pytest.fail.Exception, jax.errors.ConcretizationTypeError)
    ):
        check(broken)
