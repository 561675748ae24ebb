"""Random samples, scores and forward passes with ragged masks, for any algorithm; sizes are primes."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.types import Algorithm, Array, Batch, Outputs, Samples, Scores

P, G, Q, C, V = 2, 3, 5, 7, 11
EOS = 1


def random_samples(seed: int, num_prompts: int = P, samples_per_prompt: int = G) -> Samples:
    """Samples of lengths 1 ... C; the first of every prompt runs to C without an EOS.

    Prompts differ. Rows of three tokens or more have several versions, as where weights change
    while they are written.
    """
    draw = np.random.default_rng(seed)
    num_rows = num_prompts * samples_per_prompt
    length_B = draw.integers(1, C + 1, num_rows)
    unfinished_B = np.arange(num_rows) % samples_per_prompt == 0
    length_B[unfinished_B] = C
    column_C = np.arange(C)
    mask_BC = column_C < length_B[:, None]
    tokens_BC = np.where(mask_BC, draw.integers(2, V, (num_rows, C)), 0)
    is_end_BC = (column_C == length_B[:, None] - 1) & ~unfinished_B[:, None]
    prompt_B = np.repeat(np.arange(num_prompts), samples_per_prompt)
    prompt_mask_PQ = np.arange(Q) >= draw.integers(0, Q, num_prompts)[:, None]
    return Samples(
        prompt_tokens_BQ=jnp.array(
            np.where(prompt_mask_PQ[prompt_B], 100 + prompt_B[:, None], 0), jnp.int32
        ),
        prompt_mask_BQ=jnp.array(prompt_mask_PQ[prompt_B]),
        tokens_BC=jnp.array(np.where(is_end_BC, EOS, tokens_BC), jnp.int32),
        mask_BC=jnp.array(mask_BC),
        behavior_logprob_BC=random_logprobs(draw, mask_BC),
        finished_B=jnp.array(~unfinished_B),
        ordinal_B=jnp.array(40 + prompt_B, jnp.int32),
        sample_index_B=jnp.array(np.arange(num_rows) % samples_per_prompt, jnp.int32),
        version_BC=jnp.array(np.where(mask_BC, 3 + column_C // 2, 0), jnp.int32),
        temperature=jnp.float32(0.7),
        samples_per_prompt=samples_per_prompt,
    )


def random_logprobs(draw: np.random.Generator, mask: np.ndarray) -> Array:
    """Log-probabilities between -3 and -0.1, 0 where the mask is false."""
    return jnp.array(np.where(mask, draw.uniform(-3, -0.1, mask.shape), 0), jnp.float32)


def random_scores(algorithm: Algorithm, samples: Samples, seed: int) -> Scores:
    """Distinct scores, and of the rest only what the algorithm says it needs.

    Every second row is of the trainer's own policy: its proximal log-probabilities are those of the
    behavior policy, so that no filter of stale rows leaves out all of them.
    """
    draw = np.random.default_rng([seed, 1])
    mask_BC = np.asarray(samples.mask_BC)
    score_B = jnp.array(
        draw.permutation(mask_BC.shape[0]) + draw.uniform(-0.3, 0.3, mask_BC.shape[0]), jnp.float32
    )
    reference_BC, moved_BC = (random_logprobs(draw, mask_BC) for _ in range(2))
    is_fresh_B1 = np.arange(mask_BC.shape[0])[:, None] % 2 == 1
    extra = {
        "reference": {"reference_logprob_BC": reference_BC},
        "proximal": {
            "proximal_logprob_BC": jnp.where(is_fresh_B1, samples.behavior_logprob_BC, moved_BC)
        },
        "value": {
            "value_BC": jnp.array(
                np.where(mask_BC, draw.normal(size=mask_BC.shape), 0), jnp.float32
            )
        },
        "gradient_energy": {
            "extra": {
                "gradient_energy_BC": jnp.array(
                    np.where(mask_BC, draw.uniform(0.1, 1, mask_BC.shape), 0), jnp.float32
                )
            }
        },
        "reference_scores": {
            "extra": {
                "reference_score_BS": jnp.repeat(
                    _stored_scores(draw, mask_BC.shape[0] // samples.samples_per_prompt),
                    samples.samples_per_prompt,
                    axis=0,
                )
            }
        },
    }
    needed = {
        name: array for need in sorted(algorithm.needs) for name, array in extra[need].items()
    }
    scores = Scores(raw_B=2 * score_B + 1, standardized_B=score_B, score_B=score_B)
    return replace(scores, **needed)


def _stored_scores(draw: np.random.Generator, num_prompts: int) -> Array:
    """Five stored scores of each prompt; those of the last one are all 0.35."""
    stored_PS = draw.uniform(0.1, 1, (num_prompts, 5))
    stored_PS[-1] = 0.35
    return jnp.array(stored_PS, jnp.float32)


def with_scores(scores: Scores, score_B: Array) -> Scores:
    """The same, with another score a sample."""
    return replace(scores, raw_B=2 * score_B + 1, standardized_B=score_B, score_B=score_B)


def random_outputs(batch: Batch, seed: int) -> Outputs:
    """A forward pass of some policy and critic on the batch's rows."""
    draw = np.random.default_rng([seed, 2])
    mask_RC = np.asarray(batch.mask_RC)
    return Outputs(
        logprob_RC=random_logprobs(draw, mask_RC),
        entropy_RC=jnp.array(
            np.where(mask_RC, draw.uniform(0.1, 2, mask_RC.shape), 0), jnp.float32
        ),
        value_RC=jnp.array(np.where(mask_RC, draw.normal(size=mask_RC.shape), 0), jnp.float32),
    )


def value_and_gradient(algorithm: Algorithm, role: str, outputs: Outputs, batch: Batch):
    """`((loss_sum, metrics), gradient)`, the gradient in all of `outputs`; compiled once for a loss
    and shape.
    """
    return _compiled(algorithm.losses[role])(outputs, batch)


@cache
def _compiled(loss):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def take_rows(tree: Batch | Outputs, rows):
    """The given rows of every array; scalars stay."""
    return jax.tree.map(lambda array: array[rows] if array.ndim else array, tree)
