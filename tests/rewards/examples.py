"""Tasks and value models to judge with, small enough to check by hand."""

import jax
import jax.numpy as jnp

from rlhf_jax.types import Array, Params, Samples

T, F = True, False


class Digits:
    """A verifiable task: the answer to a prompt is its number of letters."""

    verifiable = True
    vocabulary = None

    def num_prompts(self, split) -> int:
        return 2

    def prompt(self, split, index: int) -> str:
        return ["ab", "abc"][index]

    def references(self, split, index: int) -> tuple[str, ...]:
        return (str(len(self.prompt(split, index))),)

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        return float(finished and completion == str(len(prompt)))


class Graded(Digits):
    """A graded task: one point a letter, one less for not ending."""

    verifiable = False

    def judge(self, prompt: str, completion: str, finished: bool) -> float:
        return len(completion) - float(not finished) + 0.1 * len(prompt)


class WeighedSum:
    """A value model without a transformer: hidden is Σ over unmasked columns so far of token ·
    (position + 1).

    Like attention it sees masks and positions and everything before it; unlike a transformer it can
    be added up by hand.
    """

    def __init__(self, padding_id: int = -1):
        self.padding_id = padding_id

    def apply(
        self, params: Params, tokens_BL: Array, positions_BL: Array, mask_BL: Array, cache=None
    ):
        terms_BL = jnp.where(mask_BL, tokens_BL * (positions_BL + 1), 0).astype(jnp.float32)
        return jnp.cumsum(terms_BL, axis=1)[:, :, None], cache

    def value(self, params: Params, hidden: Array) -> Array:
        return params["scale"] * hidden[..., 0]


def samples_of(
    prompts, completions, prompt_length: int, completion_length: int, pad: int = 0
) -> Samples:
    """Samples of lists of token ids: prompts left-padded, completions right-padded."""
    rows = len(prompts)
    left = [prompt_length - len(prompt) for prompt in prompts]
    right = [completion_length - len(completion) for completion in completions]
    return Samples(
        prompt_tokens_BQ=jnp.array(
            [[pad] * n + list(p) for n, p in zip(left, prompts, strict=True)], jnp.int32
        ),
        prompt_mask_BQ=jnp.array(
            [[F] * n + [T] * len(p) for n, p in zip(left, prompts, strict=True)]
        ),
        tokens_BC=jnp.array(
            [list(c) + [pad] * n for n, c in zip(right, completions, strict=True)], jnp.int32
        ),
        mask_BC=jnp.array(
            [[T] * len(c) + [F] * n for n, c in zip(right, completions, strict=True)]
        ),
        behavior_logprob_BC=jnp.zeros((rows, completion_length)),
        finished_B=jnp.ones(rows, bool),
        ordinal_B=jnp.arange(rows, dtype=jnp.int32),
        sample_index_B=jnp.zeros(rows, jnp.int32),
        version_BC=jnp.zeros((rows, completion_length), jnp.int32),
        temperature=jnp.float32(1.0),
        samples_per_prompt=1,
    )


def fill_masked(samples: Samples, token: int) -> Samples:
    """The same samples with `token` wherever a mask is false."""
    return jax.tree.map(lambda array: array, samples).replace(  # pyright: ignore[reportAttributeAccessIssue]
        prompt_tokens_BQ=jnp.where(samples.prompt_mask_BQ, samples.prompt_tokens_BQ, token),
        tokens_BC=jnp.where(samples.mask_BC, samples.tokens_BC, token),
    )
