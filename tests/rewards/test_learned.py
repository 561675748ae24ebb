"""Where a learned reward is read, by hand; and on a transformer, that only the text counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common import value_head
from rlhf_jax.rewards import learned

from .examples import WeighedSum, fill_masked, samples_of

EOS = 2
PROMPTS = [[5, 7], [4, 9, 6], [8]]
COMPLETIONS = [[3, EOS], [10], []]
SCALE = {"scale": jnp.float32(0.5)}


def test_reads_the_last_token_at_its_position():
    # Σ token · (position + 1) over prompt and completion, halved:
    # 5·1 + 7·2 + 3·3 + 2·4 = 36;  4·1 + 9·2 + 6·3 + 10·4 = 80;  the third completion is empty: 8·1.
    reward = learned.make(WeighedSum())
    raw_B = reward(SCALE, samples_of(PROMPTS, COMPLETIONS, prompt_length=3, completion_length=3))
    np.testing.assert_array_equal(raw_B, [18.0, 40.0, 4.0])
    assert raw_B.dtype == jnp.float32


def test_the_eos_is_read():
    # Without the EOS the first row is 5·1 + 7·2 + 3·3 = 28, halved.
    raw_B = learned.make(WeighedSum())(SCALE, samples_of([[5, 7]], [[3]], 3, 3))
    np.testing.assert_array_equal(raw_B, [14.0])


def test_a_padding_id_is_never_read():
    """As trained with the EOS for padding: the first row is read before its EOS, the second at its
    last token as before.

    5·1 + 7·2 + 3·3 = 28, halved. A row of this id alone is read at its last token: 2·1 + 2·2 + 2·3
    = 12, halved.
    """
    reward = learned.make(WeighedSum(padding_id=EOS))
    np.testing.assert_array_equal(
        reward(SCALE, samples_of(PROMPTS, COMPLETIONS, 3, 3)), [14.0, 40.0, 4.0]
    )
    np.testing.assert_array_equal(reward(SCALE, samples_of([[EOS, EOS]], [[EOS]], 3, 3)), [6.0])
    np.testing.assert_array_equal(
        reward(SCALE, samples_of([[5, 7]], [[EOS, 3, EOS]], 3, 3)), [(5 + 14 + 6 + 12) / 2]
    )


def test_tokens_are_scored_as_samples_are():
    """Comparisons (`score_tokens`, right-padded rows) and samples (left-padded prompts) give one
    text one score.
    """
    samples = samples_of(PROMPTS, COMPLETIONS, 3, 3)
    texts = [
        [*prompt, *completion] for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    rows = samples_of([[0]] * 3, texts, 1, 7)
    got_B = learned.score_tokens(WeighedSum(), SCALE, rows.tokens_BC, rows.mask_BC)
    np.testing.assert_array_equal(got_B, learned.make(WeighedSum())(SCALE, samples))


@pytest.fixture(scope="module")
def transformer():
    shape = dataclasses.replace(
        gpt_neox.PRESETS["quickstart"], vocab_size=11, width=16, num_layers=1, num_heads=2
    )
    model = value_head.make(gpt_neox.make(shape))
    return jax.jit(learned.make(model)), jax.jit(model.init)(jax.random.key(0))


def test_padding_changes_no_score(transformer):
    reward, params = transformer
    raw_B = reward(params, samples_of(PROMPTS, COMPLETIONS, 3, 3))
    assert np.ptp(raw_B) > 0.1  # the scores do differ by text
    for prompt_length, completion_length in ((5, 3), (17, 7)):
        wider_B = reward(params, samples_of(PROMPTS, COMPLETIONS, prompt_length, completion_length))
        np.testing.assert_allclose(wider_B, raw_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("token", [0, EOS, 7, 10_000, -1])
def test_what_stands_under_the_mask_changes_no_bit(transformer, token):
    """Garbage after the EOS, a pad id that is the EOS, ids that no vocabulary has."""
    reward, params = transformer
    samples = samples_of(PROMPTS, COMPLETIONS, 5, 3)
    np.testing.assert_array_equal(
        reward(params, fill_masked(samples, token)), reward(params, samples)
    )


def test_rows_do_not_see_each_other(transformer):
    reward, params = transformer
    raw_B = reward(params, samples_of(PROMPTS, COMPLETIONS, 5, 3))
    turned_B = reward(params, samples_of(PROMPTS[::-1], COMPLETIONS[::-1], 5, 3))
    np.testing.assert_allclose(turned_B, raw_B[::-1], rtol=1e-5, atol=1e-6)


def test_every_token_up_to_the_last_counts(transformer):
    """Another token anywhere in the text, the EOS among them, gives another score."""
    reward, params = transformer
    text, split = [5, 7, 3, 9, EOS], 2
    changed = [
        text,
        *(text[:place] + [text[place] + 1] + text[place + 1 :] for place in range(len(text))),
    ]
    raw_B = reward(
        params, samples_of([row[:split] for row in changed], [row[split:] for row in changed], 3, 7)
    )
    assert (np.abs(raw_B[1:] - raw_B[0]) > 1e-4).all()


def test_gradients_reach_the_backbone_and_the_head(transformer):
    reward, params = transformer
    samples = samples_of(PROMPTS, COMPLETIONS, 3, 3)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(reward(p, samples))))(params)
    assert gradient["value_head"]["bias"] == 3.0  # one a row
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["backbone"]))
