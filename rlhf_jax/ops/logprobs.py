"""Log-probability and entropy of tokens, in one meaning for the sampler and the learner.

With logits z, temperature τ and a token a, all in float32:

    log p(a) = z_a/τ − log Σ_v exp(z_v/τ)                    H = −Σ_v p(v) log p(v)
    ∂ log p(a) / ∂z_v = (1[v = a] − p(v)) / τ                ∂H / ∂z_v = −p(v) (log p(v) + H) / τ

The derivatives are written out, so that the backward pass is one sweep over the logits: no scatter,
no one-hot matrix.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.row_shards import num_chunks
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Array

OfLogits = Callable[[Array, Array, Array | float], tuple[Array, Array]]
"""(logits `[N, V]`, tokens `[N]`, temperature) -> two numbers a token, `[N]` each."""


@jax.custom_vjp
def token_logprobs(
    logits_NV: Array, tokens_N: Array, temperature: Array | float
) -> tuple[Array, Array]:
    """`(logprob_N, entropy_N)`, float32 nats, of the law softmax(logits / temperature).

    `logits_NV` is float32 (a logit of -inf is a word that cannot be drawn), `tokens_N` int32 in 0
    ... V-1, `temperature` a positive scalar. `logprob_N` is never above 0. Both results carry exact
    gradients to the logits and the temperature.

    Args:
      logits_NV: float32; a logit of -inf is a word that cannot be drawn.
      tokens_N: int32 in 0 ... V-1.
      temperature: a positive scalar that logits are divided by.
    """
    return _forward(logits_NV, tokens_N, temperature)[0]


def _forward(logits_NV: Array, tokens_N: Array, temperature: Array | float):
    assert_shapes(logits_NV=logits_NV, tokens_N=tokens_N)
    chex.assert_rank([temperature], 0, custom_message="temperature")
    temperature = jnp.asarray(temperature, jnp.float32)
    scaled_NV = logits_NV.astype(jnp.float32) / temperature
    largest_N = jnp.max(scaled_NV, axis=-1)
    shifted_NV = scaled_NV - largest_N[:, None]
    weight_NV = jnp.exp(shifted_NV)
    total_N = jnp.sum(weight_NV, axis=-1)
    log_total_N = jnp.log(total_N)
    chosen_N = (
        jnp.take_along_axis(logits_NV, tokens_N[:, None], axis=-1)[:, 0].astype(jnp.float32)
        / temperature
    )
    logprob_N = jnp.minimum(chosen_N - largest_N - log_total_N, 0.0)
    weighted_NV = jnp.where(weight_NV > 0, weight_NV * shifted_NV, 0.0)
    entropy_N = log_total_N - jnp.sum(weighted_NV, axis=-1) / total_N
    return (logprob_N, entropy_N), (
        logits_NV,
        tokens_N,
        temperature,
        largest_N + log_total_N,
        entropy_N,
    )


def _backward(saved, cotangents):
    logits_NV, tokens_N, temperature, normalizer_N, entropy_N = saved
    logprob_cotangent_N, entropy_cotangent_N = cotangents
    scaled_NV = logits_NV.astype(jnp.float32) / temperature
    logprob_NV = scaled_NV - normalizer_N[:, None]
    prob_NV = jnp.exp(logprob_NV)
    # 0 · (−inf) at a word that cannot be drawn would be NaN.
    surprise_NV = jnp.where(prob_NV > 0, logprob_NV + entropy_N[:, None], 0.0)
    pull_NV = prob_NV * (logprob_cotangent_N[:, None] + entropy_cotangent_N[:, None] * surprise_NV)
    is_token_NV = jax.lax.broadcasted_iota(jnp.int32, logits_NV.shape, 1) == tokens_N[:, None]
    scaled_cotangent_NV = jnp.where(is_token_NV, logprob_cotangent_N[:, None], 0.0) - pull_NV
    weighted_NV = jnp.where(scaled_cotangent_NV != 0, scaled_cotangent_NV * scaled_NV, 0.0)
    logits_cotangent_NV = (scaled_cotangent_NV / temperature).astype(logits_NV.dtype)
    return logits_cotangent_NV, None, -jnp.sum(weighted_NV) / temperature


token_logprobs.defvjp(_forward, _backward)


def token_energies(
    logits_NV: Array, tokens_N: Array, temperature: Array | float
) -> tuple[Array, Array]:
    """`(logprob_N, energy_N)`, float32, of the law p = softmax(logits / temperature), without gradient.

    The energy is that of the gradient of log p(a) in the scaled logits, in one sweep over the logits:

        ‖∂ log p(a) / ∂(z / τ)‖² = 1 − 2 p(a) + Σ_v p(v)²        Σ p² = Σ exp(2 z/τ) / (Σ exp(z/τ))²

    Args:
      logits_NV: float32; a logit of -inf is a word that cannot be drawn.
      tokens_N: int32 in 0 ... V-1.
      temperature: a positive scalar that logits are divided by.
    """
    assert_shapes(logits_NV=logits_NV, tokens_N=tokens_N)
    temperature = jnp.asarray(temperature, jnp.float32)
    scaled_NV = jax.lax.stop_gradient(logits_NV).astype(jnp.float32) / temperature
    largest_N = jnp.max(scaled_NV, axis=-1)
    weight_NV = jnp.exp(scaled_NV - largest_N[:, None])
    total_N = jnp.sum(weight_NV, axis=-1)
    squares_N = jnp.sum(jnp.square(weight_NV), axis=-1) / jnp.square(total_N)
    chosen_N = jnp.take_along_axis(scaled_NV, tokens_N[:, None], axis=-1)[:, 0]
    logprob_N = jnp.minimum(chosen_N - largest_N - jnp.log(total_N), 0.0)
    # Rounding may make the energy of a certain token negative.
    return logprob_N, jnp.maximum(1 - 2 * jnp.exp(logprob_N) + squares_N, 0.0)


def chunked_token_logprobs(
    hidden_ND: Array,
    head: Callable[[Array], Array],
    tokens_N: Array,
    temperature: Array | float,
    *,
    max_chunk_elements: int,
    of_logits: OfLogits = token_logprobs,
) -> tuple[Array, Array]:
    """`token_logprobs` of `head(hidden_ND)`, without ever holding more than `max_chunk_elements`
    logits.

    `head` maps `[n, D]` to float32 logits `[n, V]` row by row. Where N·V fits, it is called once
    and its logits are kept for the backward pass; otherwise in equal chunks of rows in a scan,
    recomputed in the backward pass. A chunk has every n-th row, so that rows stay on the device
    whose shard they are in: of contiguous chunks each device would compute all. Gradients flow to
    `hidden_ND` and to whatever `head` closes over. Raises Refusal where a single row does not fit.

    Args:
      hidden_ND: hidden states of N tokens.
      head: maps `[n, D]` to float32 logits `[n, V]`, row by row.
      tokens_N: int32 in 0 ... V-1.
      temperature: a positive scalar that logits are divided by.
      max_chunk_elements: most logits that are held at once.
      of_logits: `token_logprobs`, or `token_energies` in its place.
    """
    assert_shapes(hidden_ND=hidden_ND, tokens_N=tokens_N)
    num_rows = hidden_ND.shape[0]
    vocab_size = jax.eval_shape(head, hidden_ND[:1]).shape[-1]
    check_chunk(vocab_size, max_chunk_elements)
    if num_rows * vocab_size <= max_chunk_elements:
        return of_logits(head(hidden_ND), tokens_N, temperature)
    count = num_chunks(num_rows, max_chunk_elements // vocab_size)
    rows_per_chunk = -(-num_rows // count)
    padding = count * rows_per_chunk - num_rows

    def chunk(_, rows):
        hidden_nD, tokens_n = rows
        return None, of_logits(head(hidden_nD), tokens_n, temperature)

    def strided(array):
        padded = jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1))) if padding else array
        return padded.reshape(rows_per_chunk, count, *array.shape[1:]).swapaxes(0, 1)

    rows = strided(hidden_ND), strided(tokens_N)
    _, (logprob, entropy) = jax.lax.scan(jax.checkpoint(chunk, prevent_cse=False), None, rows)
    return logprob.T.reshape(-1)[:num_rows], entropy.T.reshape(-1)[:num_rows]


def check_chunk(vocab_size: int, max_chunk_elements: int) -> None:
    """Raises Refusal where a chunk of `max_chunk_elements` logits does not hold one row."""
    if vocab_size > max_chunk_elements:
        raise Refusal(
            f"max_chunk_elements is {max_chunk_elements}; one row of logits has {vocab_size}"
        )
