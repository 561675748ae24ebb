"""Where sampling stops: the decode loop runs the model no further than the last row that is still
going.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import EOS, PAD, C, V, check_ends

from rlhf_jax import sampling


@dataclass(frozen=True)
class Script:
    """A model that says fixed tokens by position, whatever it reads, and counts its forward passes."""

    said: tuple[tuple[int, ...], ...]  # a row's tokens by position in the completion
    calls: Any = dataclasses.field(default_factory=list, hash=False, compare=False)
    vocab_size: int = V

    def apply(self, params, tokens_BL, positions_BL, mask_BL, cache=None):
        jax.debug.callback(
            lambda length: self.calls.append(int(length)), jnp.int32(tokens_BL.shape[1])
        )
        column = cache.column + tokens_BL.shape[1]
        rows = jnp.arange(tokens_BL.shape[0])
        next_BL = jnp.stack([rows] * tokens_BL.shape[1], axis=1)
        place = jnp.full_like(next_BL, column - tiny.Q)
        said_BL = jnp.array(self.said)[next_BL, jnp.minimum(place, len(self.said[0]) - 1)]
        return jax.nn.one_hot(said_BL, V) * 50.0, cache.replace(column=column)

    def head(self, params, hidden):
        return hidden

    def init_cache(self, batch_size, max_columns):
        return tiny.make_model().init_cache(batch_size, max_columns)


@pytest.mark.parametrize(
    ("ends", "passes"), [((0, 0), 1), ((2, 0), 3), ((1, C - 1), C), ((3, C), C)]
)
def test_the_loop_stops_when_every_row_has_ended(ends, passes):
    """Two rows that end after 0-based position `ends`: the model runs once for the prompt, then
    once a further token.
    """
    script = Script(tuple(tuple([4] * end + [EOS] * (C - end))[:C] for end in ends))
    draw = jax.jit(
        partial(sampling.sample, model=script, config=tiny.law(1), eos_id=EOS, pad_id=PAD)
    )
    samples = draw({}, tiny.make_prompts(2), jax.random.key(0), np.int32(0))
    jax.effects_barrier()
    assert len(script.calls) == passes
    np.testing.assert_array_equal(samples.finished_B, np.array(ends) < C)
    np.testing.assert_array_equal(
        np.asarray(samples.mask_BC).sum(-1), np.minimum(np.array(ends) + 1, C)
    )
    check_ends(samples)


def test_every_end_ends_a_row_and_one_alone_is_what_it_was():
    """Rows end at 1 or at 5; with 1 as the only end the row of 5 goes on."""
    script = Script(((4, 5, 4, 4, 4, 4, EOS), (4, 4, EOS, 4, 4, 4, 4), (4, 4, 4, 4, 4, 4, 4)))

    def draw(ends):
        compiled = jax.jit(
            partial(sampling.sample, model=script, config=tiny.law(1), eos_id=ends, pad_id=PAD)
        )
        samples = compiled({}, tiny.make_prompts(3), jax.random.key(0), np.int32(0))
        return (
            np.asarray(samples.mask_BC).sum(-1).tolist(),
            samples.finished_B.tolist(),
            np.asarray(samples.tokens_BC),
        )

    lengths, finished, tokens = draw((EOS, 5))
    assert (lengths, finished) == ([2, 3, C], [True, True, False])
    assert tokens[0].tolist() == [4, 5] + [PAD] * (
        C - 2
    )  # the end is in the mask, nothing after it
    for alone in (EOS, (EOS,)):
        assert draw(alone)[:2] == ([C, 3, C], [True, True, False])
