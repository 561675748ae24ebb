"""Stretched rotary frequencies by hand, and what is not computed of them."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import gemma3, llama, olmo3, phi3, smollm3
from rlhf_jax.models.common import blocks, rope

SMALL = llama.Config(
    11, 24, 2, 4, 2, 13, rope_theta=100.0, rope_scaling_factor=8.0, rope_original_max_positions=20
)
PLAIN = (1.0, 0.2154435, 0.0464159)  # K = 6: 1, 100^(-1/3), 100^(-2/3)


def close(rotary, frequencies, scale=1.0):
    np.testing.assert_allclose(rotary.frequencies, frequencies, rtol=1e-5)
    assert rotary.scale == pytest.approx(scale)


def test_llama3_by_hand():
    """K = 6, theta 100, context 20, factors 1 and 4, scaling 8.

    Turns in 20 positions: 3.1830989, 0.6857780, 0.1477463. Kept = (turns - 1) / 3 in 0 ... 1:
    0.7276996, 0, 0. So: 0.7276996 + 0.2723004 / 8 = 0.7617371, and the rest / 8.
    """
    close(SMALL.rotary(0), (0.7617371, PLAIN[1] / 8, PLAIN[2] / 8))


def test_published_frequencies_keep_the_fast_and_divide_the_slow():
    rotary = llama.PRESETS["llama-3.2-1b"].rotary(0)
    ratio = rotary.frequencies / 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(1 / 32)
    assert (
        (ratio > 1 / 32) & (ratio < 1)
    ).sum() == 3  # wavelengths between 2048 and 8192: dimensions 15, 16 and 17


def test_linear_divides_every_frequency():
    close(dataclasses.replace(SMALL, rope_scaling="linear").rotary(0), np.array(PLAIN) / 8)


@pytest.mark.parametrize(
    ("truncate", "kept"), [(True, (1.0, 0.5, 0.0)), (False, (1.0, 0.227908, 0.0))]
)
def test_yarn_by_hand(truncate, kept):
    """K = 6, theta 100, context 20, turns 2 and 0.5, scaling 8.

    Index of 2 turns: 6 ln(20 / (4 pi)) / (2 ln 100) = 0.302732, and of 0.5: 6 ln(20 / pi) / (2 ln
    100) = 1.205822. Truncated 0 and 2: kept 1, 0.5, 0. Else (1.205822 - i) / 0.903090 in 0 ... 1:
    1, 0.227908, 0.
    """
    changes = {
        "rope_low_frequency_factor": 0.5,
        "rope_high_frequency_factor": 2.0,
        "rope_attention_factor": 1.25,
    }
    config = dataclasses.replace(SMALL, rope_scaling="yarn", rope_truncate=truncate, **changes)
    close(config.rotary(0), np.array(PLAIN) * (np.array(kept) + (1 - np.array(kept)) / 8), 1.25)


def test_a_ramp_of_no_length_divides_by_no_zero():
    """Both indices are 1, of the turns of the second frequency: it is kept, and the third is
    divided.
    """
    turns = 20 / (2 * math.pi * 100 ** (1 / 3))
    changes = {
        "rope_low_frequency_factor": turns,
        "rope_high_frequency_factor": turns,
        "rope_truncate": False,
    }
    config = dataclasses.replace(SMALL, rope_scaling="yarn", **changes)
    close(config.rotary(0), (PLAIN[0], PLAIN[1], PLAIN[2] / 8))


def test_dynamic_is_plain_up_to_the_original_context():
    config = dataclasses.replace(SMALL, rope_scaling="dynamic")
    close(config.rotary(0), PLAIN)
    assert rope.max_positions(config) == 20
    assert rope.max_positions(dataclasses.replace(config, rope_scaling_factor=1.0)) == 0
    assert rope.max_positions(SMALL) == 0


LONG = phi3.Config(
    11,
    32,
    1,
    4,
    2,
    13,
    rope_theta=100.0,
    rotary_fraction=0.75,
    rope_scaling="longrope",
    rope_scaling_factor=8.0,
)
LONG = dataclasses.replace(LONG, rope_short_factors="1.0 2.0 4.0", rope_long_factors="8.0 8.0 8.0")
LONG = dataclasses.replace(LONG, rope_attention_factor=1.5, rope_original_max_positions=5)


def test_longrope_divides_each_by_its_own_factor():
    close(LONG.rotary(0), np.array(PLAIN) / (1, 2, 4), 1.5)


@pytest.mark.parametrize("columns", ["tokens", "cache"])
def test_contexts_beyond_the_original_are_refused(columns):
    """Their frequencies would depend on the longest row of a batch."""
    model = phi3.make(LONG)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def trace(length, cached):
        tokens = jnp.zeros((1, length), jnp.int32)
        cache = model.init_cache(1, cached) if cached else None
        return jax.eval_shape(lambda p: model.apply(p, tokens, tokens, tokens == 0, cache), params)

    trace(5, 0)
    trace(2, 5)
    with pytest.raises(
        ValueError,
        match=r"rope_scaling 'longrope' is computed up to the original context of 5 .* 6 are",
    ):
        trace(*((6, 0) if columns == "tokens" else (2, 6)))


def test_layers_with_a_window_turn_as_they_were_not_stretched():
    config = gemma3.Config(
        11, 24, 2, 4, 2, 13, head_width=6, rope_theta=100.0, rope_local_theta=10.0
    )
    config = dataclasses.replace(
        config, full_attention_interval=2, rope_scaling="linear", rope_scaling_factor=8.0
    )
    close(config.rotary(0), 10.0 ** -np.array([0, 1 / 3, 2 / 3]))
    close(config.rotary(1), np.array(PLAIN) / 8)
    assert [config.window(layer) for layer in (0, 1)] == [512, 0]
    config = olmo3.Config(
        11, 24, 4, 4, 2, 13, rope_theta=100.0, rope_scaling="linear", rope_scaling_factor=8.0
    )
    assert [config.window(layer) for layer in range(4)] == [4096, 4096, 4096, 0]
    close(config.rotary(0), PLAIN)
    close(config.rotary(3), np.array(PLAIN) / 8)


def test_layers_without_positions():
    config = smollm3.Config(11, 24, 4, 4, 2, 13, rope_theta=100.0, sliding_window=7)
    close(config.rotary(2), PLAIN)
    assert config.rotary(3) == rope.NONE
    assert [config.window(layer) for layer in range(4)] == [0, 0, 0, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": "longrope"},
            "rope_scaling is 'longrope'; accepted: linear, llama3, yarn, dynamic",
        ),
        ({"rope_scaling_factor": 0.0}, "rope_scaling_factor is 0.0; accepted: above 0"),
        ({"rope_attention_factor": 0.0}, "rope_attention_factor is 0.0; accepted: above 0"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0; accepted: above 0"),
        (
            {"rope_scaling": "yarn", "rope_theta": 1.0},
            "rope_theta is 1.0; accepted: above 0, and above 1 with",
        ),
        (
            {"rope_low_frequency_factor": 4.0},
            "rope_low_frequency_factor is 4.0; accepted: below rope_high_frequency_",
        ),
        ({"rope_original_max_positions": 0}, "rope_original_max_positions 0; accepted: above 0"),
    ],
)
def test_make_refuses_frequencies_that_are_not_computed(changes, message):
    with pytest.raises(ValueError, match=message):
        llama.make(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_short_factors": "1.0 2.0"},
            "rope_short_factors has 2 numbers; accepted with longrope: 3",
        ),
        ({"rotary_fraction": 0.4}, "a head's width 8 that rotary_fraction gives is 3"),
        ({"rotary_fraction": 1.5}, "rotary_fraction is 1.5"),
    ],
)
def test_make_refuses_a_part_of_a_head_that_cannot_turn(changes, message):
    with pytest.raises(ValueError, match=message):
        phi3.make(dataclasses.replace(LONG, **changes))


def test_tables_are_scaled():
    cosine, sine = blocks.rotary_tables(jnp.array([[3]]), (0.5,), 2.0)
    np.testing.assert_allclose(
        (cosine[0, 0, 0], sine[0, 0, 0]), (2 * math.cos(1.5), 2 * math.sin(1.5)), rtol=1e-6
    )
