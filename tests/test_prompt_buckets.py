"""Prompts in buckets of length: what is computed in a narrower width is what the whole width gives, and
rows come back in their order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from rlhf_jax import prompt_buckets
from rlhf_jax.micro_batches import map_micro_batches
from rlhf_jax.runtime.program import Program
from rlhf_jax.types import Prompts, Samples
from tests.runtime import rounds

LENGTHS = (3, 1, 9, 2, 12, 5, 1, 8)


def prompts_of(lengths, width=12):
    mask = np.arange(width) >= width - np.array(lengths)[:, None]
    tokens = np.where(mask, 5 + np.arange(width) + np.arange(len(lengths))[:, None], 0)
    return Prompts(tokens.astype(np.int32), mask, np.arange(16, 16 + len(lengths), dtype=np.int32))


def samples_of(lengths, group=2, columns=4):
    """Samples of prompts; each row is told from the others by its tokens."""
    prompts, num_rows = prompts_of(lengths), group * len(lengths)
    tokens, mask, ordinal = (np.repeat(x, group, 0) for x in jax.tree.leaves(prompts))
    tokens_BC = (7 + np.arange(num_rows)[:, None] + np.arange(columns)).astype(np.int32) % 20
    return Samples(
        prompt_tokens_BQ=tokens % 20,
        prompt_mask_BQ=mask,
        tokens_BC=tokens_BC,
        mask_BC=np.arange(columns) <= (np.arange(num_rows) % columns)[:, None],
        behavior_logprob_BC=np.zeros((num_rows, columns), np.float32),
        finished_B=np.ones(num_rows, bool),
        ordinal_B=ordinal,
        sample_index_B=np.tile(np.arange(group, dtype=np.int32), len(lengths)),
        version_BC=np.zeros((num_rows, columns), np.int32),
        temperature=np.float32(0.7),
        samples_per_prompt=group,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "count", "widths"),
    [(512, 4, (128, 256, 384, 512)), (5, 2, (3, 5)), (3, 8, (1, 2, 3)), (7, 1, (7,))],
)
def test_widths_rise_to_the_longest(length, count, widths):
    assert prompt_buckets.widths(length, count) == widths


@pytest.mark.parametrize(("longest", "width"), [(1, 3), (3, 3), (4, 6), (12, 12)])
def test_a_prompt_is_in_the_narrowest_bucket_that_holds_it(longest, width):
    assert prompt_buckets.bucket_of(longest, (3, 6, 9, 12)) == width


def test_batches_hold_similar_lengths_in_the_width_of_their_bucket():
    found = prompt_buckets.sorted_batches(prompts_of(LENGTHS), 3, 4)
    assert [count for _, count in found] == [3, 3, 2]
    assert [batch.tokens_PQ.shape for batch, _ in found] == [(3, 3), (3, 9), (3, 12)]
    ordinals = [(batch.ordinal_P[:count] - 16).tolist() for batch, count in found]
    assert ordinals == [[1, 6, 3], [0, 5, 7], [2, 4]]
    assert found[2][0].ordinal_P[2] == found[2][0].ordinal_P[0]  # fills the batch
    for batch, _ in found:  # no token is lost
        assert batch.mask_PQ.sum(1).tolist() == [LENGTHS[i - 16] for i in batch.ordinal_P]
        last = 5 + 12 - 1 + batch.ordinal_P - 16  # by `prompts_of`
        np.testing.assert_array_equal(batch.tokens_PQ[:, -1], last)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
@pytest.mark.parametrize("row_shards", [1, 2])
def test_rows_return_in_their_order_and_each_micro_batch_has_a_width(num_micro_batches, row_shards):
    widths = []

    def score(params, samples):
        jax.debug.callback(lambda _: widths.append(samples.prompt_mask_BQ.shape[1]), params)
        length_B = samples.prompt_mask_BQ.sum(1)
        return params * samples.tokens_BC + length_B[:, None]

    samples = samples_of(LENGTHS)
    bucketed = prompt_buckets.in_buckets(score, 4)
    micro_batched = map_micro_batches(bucketed, num_micro_batches, 2, 2)
    run = prompt_buckets.by_length(micro_batched, num_micro_batches, 2, row_shards)
    found = jax.jit(run)(jnp.float32(2), samples)
    jax.effects_barrier()
    np.testing.assert_array_equal(found, 2 * samples.tokens_BC + np.repeat(LENGTHS, 2)[:, None])
    by_hand = {  # of the longest prompt of each micro-batch, whose prompts have neighbouring lengths
        (1, 1): [12],
        (1, 2): [3, 12],  # 1 1 2 3 | 5 8 9 12
        (1, 4): [3, 3, 9, 12],
        (2, 1): [12],
        (2, 2): [6, 12],  # 1 2 of 3 1 9 2, and 1 5 of 12 5 1 8 | 3 9, and 8 12
        (2, 4): [3, 6, 9, 12],
    }
    assert sorted(widths) == by_hand[row_shards, num_micro_batches]


def test_groups_that_do_not_divide_stay_as_they_are():
    seen = []

    def score(params, samples):
        seen.append(samples.ordinal_B)
        return samples.ordinal_B

    samples = samples_of(LENGTHS[:6])
    found = prompt_buckets.by_length(score, 4, 2, 1)(None, samples)
    np.testing.assert_array_equal(found, samples.ordinal_B)
    np.testing.assert_array_equal(seen[0], samples.ordinal_B)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)])
def test_scores_of_a_round_are_those_of_the_whole_width(shape):
    """Reference log-probabilities, values, energies and rewards in micro-batches, on one device and on
    row shards: the numbers of the plain program.
    """
    spec = dataclasses.replace(rounds.make_spec(tiny.make_mesh(shape)), num_micro_batches=2)
    params = tiny.make_params(spec.model)
    plain = Program(spec, params)
    bucketed = Program(dataclasses.replace(spec, prompt_buckets=3), params)
    samples = plain.generate(plain.publish(plain.init(params)), 0, 0)
    lengths = np.asarray(samples.prompt_mask_BQ).sum(1)
    assert len({prompt_buckets.bucket_of(n, prompt_buckets.widths(5, 3)) for n in lengths}) > 1
    for name in plain.scores:
        frozen = {"reference": params, "reward": {}}[plain.scores[name].call.role]
        expected = plain.scores[name].function(frozen, samples)
        found = bucketed.scores[name].function(frozen, samples)
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)
        assert found.sharding.is_equivalent_to(expected.sharding, found.ndim)


def test_no_row_leaves_its_device():
    """Groups are sorted by length within a device: the devices agree on a width, and send nothing
    else.
    """
    spec = dataclasses.replace(rounds.make_spec(tiny.make_mesh((2, 1, 1))), num_micro_batches=2)
    program = Program(dataclasses.replace(spec, prompt_buckets=3), tiny.make_params(spec.model))
    text = program.lowered("reference").compile().as_text()
    assert "conditional" in text
    assert "all-reduce" in text
    for sent in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert sent not in text, sent
