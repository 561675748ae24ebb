"""Public doors of `ops/` refuse arrays of another rank or shape, and name the argument."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import advantages, corrections, divergences, logprobs, losses, masked
from rlhf_jax.ops.shapes import assert_shapes

SIZES = {"P": 2, "G": 3, "B": 5, "R": 5, "C": 7, "L": 7, "N": 13, "V": 11, "D": 17, "U": 2}
DTYPES = {"mask": jnp.bool_, "tokens": jnp.int32}
DOORS = [
    *(
        (function, "score_PG")
        for function in (
            advantages.from_first,
            advantages.leave_one_out,
            advantages.centered,
            advantages.deviation,
            advantages.standardized,
            advantages.bessel,
            advantages.rank,
            advantages.best_of_group,
        )
    ),
    (partial(advantages.gae, gamma=1.0, gae_lambda=0.9), "reward_BC value_BC mask_BC"),
    *(
        (function, "logprob_BC reference_logprob_BC mask_BC")
        for function in (divergences.k1, divergences.k2, divergences.k3)
    ),
    (divergences.full_kl, "logits_NV reference_logits_NV"),
    (masked.positions_from_mask, "mask_BL"),
    (masked.last_index, "mask_BC"),
    (partial(corrections.log_staleness, level="token"), "proximal_BC behavior_BC mask_BC"),
    (
        partial(corrections.staleness_weight, corrections.Correction(correction="truncate")),
        "proximal_BC behavior_BC mask_BC",
    ),
    (partial(corrections.within_second_moment, limit=0.1), "log_BC mask_BC"),
    (partial(logprobs.token_logprobs, temperature=1.0), "logits_NV tokens_N"),
    (
        lambda hidden_ND, tokens_N: logprobs.chunked_token_logprobs(
            hidden_ND, lambda hidden: hidden[:, :11], tokens_N, 1.0, max_chunk_elements=33
        ),
        "hidden_ND tokens_N",
    ),
    (partial(losses.dpo, beta=0.1), "margin_U"),
    (partial(losses.smoothed_dpo, beta=0.1, label_smoothing=0.1), "margin_U"),
    (partial(losses.ipo, beta=0.1), "margin_U"),
    (losses.pairwise_logistic, "chosen_U rejected_U"),
    (losses.cross_entropy_sum, "logprob_RC mask_RC"),
]


def shapes(names: list[str]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(
            tuple(SIZES[letter] for letter in name.rpartition("_")[2]),
            DTYPES.get(name.partition("_")[0], jnp.float32),
        )
        for name in names
    ]


@pytest.mark.parametrize(("function", "arguments"), DOORS)
def test_a_wrong_rank_or_shape_is_refused_with_the_arguments_name(function, arguments):
    names = arguments.split()
    right = shapes(names)
    jax.eval_shape(function, *right)
    for index, (name, array) in enumerate(zip(names, right, strict=True)):
        wrong = list(right)
        wrong[index] = jax.ShapeDtypeStruct((1, *array.shape), array.dtype)
        with pytest.raises(AssertionError, match=rf"rank {array.ndim + 1} .*\[{name}\]"):
            jax.eval_shape(function, *wrong)
    if len(names) > 1:  # the first argument sets the sizes, so that the last one is refused
        longer = jax.ShapeDtypeStruct((right[-1].shape[0] + 1, *right[-1].shape[1:]), bool)
        with pytest.raises(AssertionError, match=rf"shape .*\[{names[-1]}\]"):
            jax.eval_shape(function, *right[:-1], longer)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (masked.select, "values, mask"),
        (masked.masked_sum, "values, mask"),
        (masked.masked_mean, "values, mask"),
        (masked.masked_max, "values, mask"),
        (masked.masked_moments, "values, mask"),
        (masked.masked_whiten, "values, mask"),
        (corrections.effective_sums, "weight, mask"),
        (lambda a, b: losses.clipped_surrogate(a, b, 0.2, 0.2), "log_ratio, advantage"),
        (lambda a, b: losses.clipped_value(a, b, a, 0.2), "value, first_value, target"),
    ],
)
def test_arguments_of_any_shape_are_of_one(function, message):
    """A mask `[C]` beside values `[B, C]` would be repeated over the rows without a word."""
    with pytest.raises(AssertionError, match=rf"\[{message}\]"):
        function(np.zeros((5, 7), np.float32), np.ones(7, bool))


def test_one_size_per_letter_and_none_is_passed_over():
    assert_shapes(a_BC=np.zeros((5, 7)), b_B=np.zeros(5), c_C=None)
    with pytest.raises(AssertionError, match=r"shape \(7,\) but expected \(5,?\).*\[b_B\]"):
        assert_shapes(a_BC=np.zeros((5, 7)), b_B=np.zeros(7))


def test_a_temperature_is_one_number():
    with pytest.raises(AssertionError, match=r"\[temperature\]"):
        logprobs.token_logprobs(jnp.zeros((13, 11)), jnp.zeros(13, int), jnp.ones(13))
