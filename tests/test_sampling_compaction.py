"""Decoding on ever fewer rows draws what decoding on all of them draws, and takes the steps that it
says.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sampling
from rlhf_jax.devices import sharding
from rlhf_jax.models.api import Cache
from rlhf_jax.types import Samples
from tests import tiny

LENGTH = 23
PLAIN = tiny.law(length=LENGTH, temperature=1.0)


def draw(config: sampling.Config, family: str = "gpt_neox") -> Samples:
    return tiny.draw(tiny.make_model(family), config, tiny.make_prompts(8))


def check_same(found: Samples, plain: Samples) -> None:
    for name in ("tokens_BC", "mask_BC", "finished_B", "ordinal_B", "sample_index_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)
    np.testing.assert_allclose(found.behavior_logprob_BC, plain.behavior_logprob_BC, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "num_compactions", "row_shards"),
    [("gpt_neox", 2, 1), ("gpt_neox", 1, 3), ("llama", 1, 1)],
)
def test_the_samples_are_the_plain_ones(family, num_compactions, row_shards):
    """24 rows that end one by one: 6, then 1 go on; by shards of 8: 2 of each."""
    plain = draw(PLAIN, family)
    length_B = np.asarray(plain.mask_BC).sum(axis=1)
    assert len(set(length_B.tolist())) > 5, "the rows should end at many places"
    found = draw(
        dataclasses.replace(PLAIN, num_compactions=num_compactions, row_shards=row_shards), family
    )
    check_same(found, plain)


def test_the_last_samples_of_a_prompt_are_greedy_and_the_others_are_not_changed():
    """Also where rows are gathered, which must take along who is greedy."""
    most_probable = draw(tiny.law(1, length=LENGTH, temperature=0.0))
    config = tiny.law(4, length=LENGTH, temperature=1.0)
    found = draw(dataclasses.replace(config, num_greedy=1, num_compactions=1))
    is_greedy = np.arange(len(found.tokens_BC)) % 4 == 3
    plain = draw(config)
    assert not np.array_equal(plain.tokens_BC[3::4], most_probable.tokens_BC)
    check_same(
        rows(found, is_greedy), most_probable.replace(sample_index_B=plain.sample_index_B[3::4])
    )
    check_same(rows(found, ~is_greedy), rows(plain, ~is_greedy))


def rows(samples: Samples, keep: np.ndarray) -> Samples:
    return jax.tree.map(lambda x: np.asarray(x)[keep] if x.ndim else x, samples)


def test_sharded_rows_stay_on_their_shards():
    config = dataclasses.replace(PLAIN, num_compactions=1, row_shards=4)
    model, mesh, prompts = tiny.make_model(), tiny.make_mesh((2, 2, 1)), tiny.make_prompts(8)
    params = jax.device_put(tiny.make_params(model), sharding.replicated(mesh))
    placed = jax.device_put(prompts, sharding.row_shardings(prompts, mesh))
    found = tiny.sampler(model, config)(params, placed, jax.random.key(0), np.int32(3))
    check_same(found, draw(PLAIN))


def counted(
    length_B: list[int], num_compactions: int, row_shards: int = 1
) -> tuple[list[int], np.ndarray]:
    """The sizes of the batches that steps ran on, for rows that end after `length_B` tokens, and
    how many tokens each has.
    """
    sizes: list[int] = []

    def step(loop: sampling._Loop) -> sampling._Loop:
        jax.debug.callback(
            lambda _: sizes.append(loop.done_B.shape[0]), loop.position, ordered=True
        )
        live_B = ~loop.done_B
        return loop._replace(
            position=loop.position + 1,
            done_B=loop.done_B | (loop.position + 1 >= loop.length_B),
            mask_CB=loop.mask_CB.at[loop.position].set(live_B),
        )

    position_BM = jnp.full((len(length_B), 1), -1, jnp.int32)
    cache = Cache(keys=(), values=(), position_BM=position_BM, column=jnp.int32(0))
    loop = sampling._begin(jnp.zeros((9, len(length_B))), jnp.asarray(length_B), None, 0, cache)
    loop = jax.jit(lambda loop: sampling._decode(step, loop, num_compactions, row_shards))(loop)
    jax.effects_barrier()
    return sizes, np.asarray(loop.mask_CB.sum(axis=0))


@pytest.mark.parametrize(
    ("num_compactions", "row_shards", "expected"),
    [
        (0, 1, [16] * 9),
        # Lengths 8 x 1, 4 x 2, 3 x 3, 1 x 9: four rows are left after two steps, and one after
        # three.
        (1, 1, [16, 16, 4, 4, 4, 4, 4, 4, 4]),
        (2, 1, [16, 16, 4, 1, 1, 1, 1, 1, 1]),
        (3, 1, [16, 16, 4, 1, 1, 1, 1, 1, 1]),
        # By halves the long ones are all in the second, which has 2 places for them after three
        # steps.
        (1, 2, [16, 16, 16, 4, 4, 4, 4, 4, 4]),
    ],
)
def test_steps_run_on_a_quarter_of_the_rows_when_it_holds_them(
    num_compactions, row_shards, expected
):
    length_B = [1] * 8 + [2, 3, 2, 9, 2, 3, 2, 3]
    sizes, tokens_B = counted(length_B, num_compactions, row_shards)
    assert sizes == expected
    np.testing.assert_array_equal(tokens_B, length_B)


def test_rows_that_never_end_have_all_their_tokens():
    sizes, tokens_B = counted([99] * 3 + [1] * 13, 2)
    assert sizes == [16] + [4] * 8
    np.testing.assert_array_equal(tokens_B, [9] * 3 + [1] * 13)
