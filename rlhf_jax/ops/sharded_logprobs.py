"""`token_logprobs` of rows that are sharded over devices: the head's params are gathered once, and
their gradient is reduced once, in float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.ops.logprobs import OfLogits, check_chunk, token_logprobs
from rlhf_jax.ops.row_shards import RowShards, scan_chunks
from rlhf_jax.ops.shapes import assert_shapes
from rlhf_jax.types import Array


@dataclass(frozen=True)
class HeadParam:
    """One param of a head on a mesh."""

    spec: P  # names of mesh axes by dimension
    dtype: str  # that the head rounds it to before anything else, or its own


def sharded_token_logprobs(
    hidden_ND: Array,
    head: Callable[[Sequence[Array], Array], Array],
    params: Sequence[Array],
    tokens_N: Array,
    temperature: Array | float,
    *,
    max_chunk_elements: int,
    shards: RowShards,
    param_layout: Sequence[HeadParam],
    of_logits: OfLogits = token_logprobs,
) -> tuple[Array, Array]:
    """`token_logprobs` of `head(params, hidden_ND)`, of which each device computes the rows that it
    holds, at most `max_chunk_elements` logits at a time.

    The params are rounded to the dtype that the head reads, and gathered, once for the forward and
    the backward pass. The backward pass computes the logits again, adds the gradients of the chunks
    up in float32 on each device, and sums them over the devices in one reduction: scattered where
    the param is sharded over an axis of rows. Raises Refusal where a single row does not fit.

    Args:
      hidden_ND: hidden states of N tokens, N a multiple of the shards.
      head: maps `(params, [n, D])` to float32 logits `[n, V]`, row by row.
      params: that the head reads.
      tokens_N: int32 in 0 ... V-1.
      temperature: a positive scalar that logits are divided by.
      max_chunk_elements: most logits that a device holds at once.
      shards: of the rows.
      param_layout: of each param.
      of_logits: `token_logprobs`, or `token_energies` in its place.
    """
    assert_shapes(hidden_ND=hidden_ND, tokens_N=tokens_N)
    vocab_size = jax.eval_shape(head, params, hidden_ND[:1]).shape[-1]
    check_chunk(vocab_size, max_chunk_elements)
    max_rows = max_chunk_elements // vocab_size
    dtypes = [param.dtype for param in params]

    def scored(params: Sequence[Array], hidden_nD: Array, tokens_n: Array, temperature: Array):
        return of_logits(head(params, hidden_nD), tokens_n, temperature)

    def forward(params: Sequence[Array], hidden_ND: Array, tokens_N: Array, temperature: Array):
        whole = [
            shards.gathered(param.astype(layout.dtype), layout.spec)
            for param, layout in zip(params, param_layout, strict=True)
        ]

        def local(constants, rows):
            params, temperature = constants

            def chunk(rows: tuple[Array, Array]):
                return (), scored(params, *rows, temperature)

            return scan_chunks(chunk, rows, max_rows)[1]

        outputs = shards.run(local, (whole, temperature), (hidden_ND, tokens_N))
        return outputs, (whole, hidden_ND, tokens_N, temperature)

    def backward(saved, cotangents: tuple[Array, Array]):
        whole, hidden_ND, tokens_N, temperature = saved

        def local(constants, rows):
            # Gradients have the dtype of what they are of: of float32 params they add up in it.
            params = [param.astype(jnp.float32) for param in constants[0]]

            def chunk(rows):
                hidden_nD, tokens_n, cotangents_n = rows
                _, pull = jax.vjp(
                    lambda p, h, t: scored(p, h, tokens_n, t), params, hidden_nD, constants[1]
                )
                by_params, by_hidden_nD, by_temperature = pull(cotangents_n)
                return (by_params, by_temperature), by_hidden_nD

            sums, by_hidden_nD = scan_chunks(chunk, rows, max_rows)
            return jax.tree.map(lambda x: x[None], sums), by_hidden_nD

        rows = (hidden_ND, tokens_N, cotangents)
        (by_params, by_temperature_S), by_hidden_ND = shards.run(local, (whole, temperature), rows)
        reduced = [
            shards.reduced(addends, layout.spec).astype(dtype)
            for addends, layout, dtype in zip(by_params, param_layout, dtypes, strict=True)
        ]
        return reduced, by_hidden_ND, None, by_temperature_S.sum()

    run = jax.custom_vjp(lambda *arguments: forward(*arguments)[0])
    run.defvjp(forward, backward)
    return run(list(params), hidden_ND, tokens_N, jnp.asarray(temperature, jnp.float32))
