"""The sampler: its law, its keys, where it stops, and that decoding says what a full forward pass
says.
"""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import EOS, FAMILIES, MESHES, PAD, C, G, P, check_ends

from rlhf_jax import sampling, scoring
from rlhf_jax.devices import sharding
from rlhf_jax.types import Prompts, Samples


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny.make_model(request.param)


@lru_cache
def scorer(model):
    return jax.jit(partial(scoring.sample_logprobs, model=model))


def teacher_forced(model, samples: Samples) -> np.ndarray:
    return np.asarray(scorer(model)(tiny.make_params(model), samples))


def check_behavior_logprobs(model, samples: Samples) -> None:
    """Decode and prefill agree, and nothing is said under the mask."""
    np.testing.assert_allclose(
        samples.behavior_logprob_BC, teacher_forced(model, samples), atol=1e-4
    )
    assert not np.asarray(samples.behavior_logprob_BC)[~np.asarray(samples.mask_BC)].any()
    assert (np.asarray(samples.behavior_logprob_BC) <= 0).all()


SEEDS = range(5)


@pytest.fixture(scope="module")
def draws(model) -> list[Samples]:
    """A few rounds of the same prompts (ragged, left-padded), with other random numbers."""
    return [tiny.draw(model, tiny.law(), tiny.make_prompts(P), seed) for seed in SEEDS]


def test_decoding_says_what_a_full_forward_pass_says(model, draws):
    num_tokens = sum(int(samples.mask_BC.sum()) for samples in draws)
    assert P * G * len(SEEDS) < num_tokens < P * G * C * len(SEEDS), "lengths should be ragged"
    for samples in draws:
        check_behavior_logprobs(model, samples)


def test_logprobs_are_those_of_one_token_at_a_time(model, draws):
    """Brute force, a token at a time, without left padding or cache: an off-by-one in either path
    would show.
    """
    samples, apply = draws[0], jax.jit(model.apply)
    row = int(np.asarray(samples.mask_BC).sum(-1).argmax())
    tokens = np.asarray(samples.tokens_BC)[row, :4].tolist()
    assert np.asarray(samples.mask_BC)[row, :4].all()
    kernel_DV = head_kernel(tiny.make_params(model))
    seen = np.asarray(samples.prompt_tokens_BQ)[row][
        np.asarray(samples.prompt_mask_BQ)[row]
    ].tolist()
    naive = []
    for token in tokens:
        length, width = len(seen), tiny.Q + 4
        ids, mask = (
            np.array([seen + [0] * (width - length)], np.int32),
            np.arange(width)[None] < length,
        )
        hidden, _ = apply(
            tiny.make_params(model), ids, np.arange(width, dtype=np.int32)[None], mask
        )
        logits_V = np.asarray(hidden, np.float64)[0, length - 1] @ kernel_DV / 0.7
        naive.append(logits_V[token] - np.log(np.exp(logits_V).sum()))
        seen.append(token)
    np.testing.assert_allclose(np.asarray(samples.behavior_logprob_BC)[row, :4], naive, atol=1e-4)
    np.testing.assert_allclose(teacher_forced(model, samples)[row, :4], naive, atol=1e-4)


def head_kernel(params) -> np.ndarray:
    return np.asarray(
        next(v for k, v in params.items() if k in ("embed_out", "lm_head"))["kernel"], np.float64
    )


def test_padding_changes_nothing(model):
    """The same prompt with 0 and with 4 pads to its left, whatever the pads hold."""
    short = tiny.make_prompts(P)
    garbage_P4 = np.repeat(np.array([[7, 7, 3, 3]], np.int32), P, axis=0)
    wide = Prompts(
        np.concatenate([garbage_P4, short.tokens_PQ], axis=1),
        np.concatenate([np.zeros((P, 4), bool), short.mask_PQ], axis=1),
        short.ordinal_P,
    )
    one, other = (tiny.draw(model, tiny.law(), prompts) for prompts in (short, wide))
    np.testing.assert_array_equal(one.tokens_BC, other.tokens_BC)
    np.testing.assert_allclose(one.behavior_logprob_BC, other.behavior_logprob_BC, atol=1e-5)


def test_eos_is_inside_the_mask_and_nothing_is_after_it(draws):
    finished = np.concatenate([samples.finished_B for samples in draws])
    assert finished.any()
    assert not finished.all(), "both ends should be seen"
    for samples in draws:
        check_ends(samples)


def test_carriers_are_what_the_prompts_say(model):
    prompts = tiny.make_prompts(P)
    samples = tiny.draw(model, tiny.law(), prompts)
    assert (
        samples.tokens_BC.shape
        == samples.mask_BC.shape
        == samples.behavior_logprob_BC.shape
        == (P * G, C)
    )
    np.testing.assert_array_equal(samples.ordinal_B, [16, 16, 16, 17, 17, 17])
    np.testing.assert_array_equal(samples.sample_index_B, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(samples.prompt_tokens_BQ, np.repeat(prompts.tokens_PQ, G, axis=0))
    np.testing.assert_array_equal(samples.prompt_mask_BQ, np.repeat(prompts.mask_PQ, G, axis=0))
    np.testing.assert_array_equal(samples.version_BC, np.where(samples.mask_BC, 3, 0))
    assert (float(samples.temperature), samples.samples_per_prompt) == (np.float32(0.7), G)


def test_samples_of_a_prompt_are_the_prompt_repeated(model, draws):
    """G samples of one prefill equal G prompts of one sample each, given the same ordinals and
    sample indices.
    """
    repeated = jax.tree.map(lambda array: np.repeat(array, G, axis=0), tiny.make_prompts(P))

    @jax.jit
    def first_tokens(params):
        one = sampling.prefill(params, repeated, model, tiny.Q + C, 1)
        uniform_B = sampling.uniforms(
            jax.random.key(0), repeated.ordinal_P, np.tile(np.arange(G), P), C
        )[0]
        return (
            one,
            sampling.prefill(params, tiny.make_prompts(P), model, tiny.Q + C, G),
            sampling.sample_token(one[0], uniform_B, 0.7),
        )

    one, grouped, (token_B, logprob_B) = first_tokens(tiny.make_params(model))
    jax.tree.map(
        lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5), one, grouped
    )
    np.testing.assert_array_equal(token_B, np.asarray(draws[0].tokens_BC)[:, 0])
    np.testing.assert_allclose(logprob_B, np.asarray(draws[0].behavior_logprob_BC)[:, 0], atol=1e-5)


def rows_of(samples: Samples) -> dict[tuple[int, int], tuple[bytes, ...]]:
    """Bytes of each row by (ordinal, sample index)."""
    columns = [
        np.asarray(x)
        for x in (
            samples.tokens_BC,
            samples.mask_BC,
            samples.behavior_logprob_BC,
            samples.finished_B,
        )
    ]
    keys = zip(
        np.asarray(samples.ordinal_B).tolist(),
        np.asarray(samples.sample_index_B).tolist(),
        strict=True,
    )
    return {key: tuple(column[row].tobytes() for column in columns) for row, key in enumerate(keys)}


def test_a_row_does_not_depend_on_the_order_of_the_batch(model):
    prompts = tiny.make_prompts(P)
    turned = jax.tree.map(lambda array: np.asarray(array)[::-1], prompts)
    assert rows_of(tiny.draw(model, tiny.law(), prompts)) == rows_of(
        tiny.draw(model, tiny.law(), turned)
    )


def test_a_row_does_not_depend_on_how_rounds_are_cut(model):
    """Ordinals 0..3 as rounds (0,1)(2,3) and as (0,2)(1,3): bitwise, in one shape."""
    prompts = tiny.make_prompts(4)

    def rounds(*orders):
        rows = {}
        for order in orders:
            taken = jax.tree.map(lambda array, order=order: np.asarray(array)[order], prompts)
            rows |= rows_of(tiny.draw(model, tiny.law(), taken))
        return rows

    assert rounds([0, 1], [2, 3]) == rounds([0, 2], [1, 3])


def test_rows_of_a_prompt_differ_and_seeds_differ(model):
    same = Prompts(
        *(np.repeat(array[:1], P, axis=0) for array in jax.tree.leaves(tiny.make_prompts(P)))
    )
    one, other = (tiny.draw(model, tiny.law(), same, seed=seed) for seed in (0, 1))
    rows = rows_of(one)
    assert len(set(rows.values())) == G
    assert rows != rows_of(other)


@pytest.mark.parametrize(
    ("family", "shape"), [("llama", (2, 2, 2)), *(("gpt_neox", shape) for shape in MESHES)]
)
def test_tokens_do_not_depend_on_the_mesh(family, shape):
    model, prompts, mesh = tiny.make_model(family), tiny.make_prompts(8), tiny.make_mesh(shape)
    alone = tiny.draw(model, tiny.law(2), prompts)
    params = jax.device_put(
        tiny.make_params(model), sharding.params_shardings(model, tiny.make_params(model), mesh)
    )
    prompts = jax.device_put(prompts, sharding.row_shardings(prompts, mesh))
    spread = tiny.draw(model, tiny.law(2), prompts, params=params)
    np.testing.assert_array_equal(alone.tokens_BC, spread.tokens_BC)
    np.testing.assert_array_equal(alone.mask_BC, spread.mask_BC)
    np.testing.assert_allclose(alone.behavior_logprob_BC, spread.behavior_logprob_BC, atol=1e-5)


def test_greedy_takes_the_most_probable_token(model):
    """Temperature 0, and every row of a prompt alike; each token is the argmax of a full forward
    pass.
    """
    params = tiny.make_params(model)
    samples = tiny.draw(model, tiny.law(temperature=0.0), tiny.make_prompts(P))
    rows = (samples.prompt_tokens_BQ, samples.prompt_mask_BQ, samples.tokens_BC, samples.mask_BC)
    hidden_BCD = jax.jit(partial(scoring.completion_hidden, model=model))(params, *rows)
    logits_BCV = np.asarray(hidden_BCD) @ head_kernel(params)
    mask_BC = np.asarray(samples.mask_BC)
    np.testing.assert_array_equal(
        logits_BCV.argmax(-1)[mask_BC], np.asarray(samples.tokens_BC)[mask_BC]
    )
    tokens_PGC = np.asarray(samples.tokens_BC).reshape(P, G, C)
    np.testing.assert_array_equal(tokens_PGC, np.repeat(tokens_PGC[:, :1], G, axis=1))
    assert not np.asarray(samples.behavior_logprob_BC).any()


# The checks above, on broken samplers: a check that passes here cannot fail anywhere.


def test_checks_fail_on_broken_samplers(model, draws):
    good = next(samples for samples in draws if samples.finished_B.any())
    mask_BC = np.asarray(good.mask_BC)
    with pytest.raises(AssertionError):  # EOS outside the mask
        check_ends(replace(good, mask_BC=mask_BC & (np.asarray(good.tokens_BC) != EOS)))
    with pytest.raises(AssertionError):  # log-probabilities off by one
        check_behavior_logprobs(
            model, replace(good, behavior_logprob_BC=np.roll(good.behavior_logprob_BC, 1, axis=1))
        )


def test_padding_check_fails_on_positions_that_count_pads(monkeypatch):
    """With columns as positions the decode loop, which counts real tokens, disagrees with the
    prefill.
    """
    model = tiny.make_model()

    def columns_as_positions(mask_BL):
        return jnp.broadcast_to(jnp.arange(mask_BL.shape[1], dtype=jnp.int32)[None], mask_BL.shape)

    monkeypatch.setattr(sampling, "positions_from_mask", columns_as_positions)
    broken = jax.jit(
        partial(sampling.sample, model=model, config=tiny.law(), eos_id=EOS, pad_id=PAD)
    )
    samples = broken(tiny.make_params(model), tiny.make_prompts(P), jax.random.key(0), np.int32(0))
    with pytest.raises(AssertionError):
        check_behavior_logprobs(model, samples)
