"""Draws a token by inverting the cumulative distribution, on whole logits or on their shards."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rlhf_jax.types import Array


def token(logits_BV: Array, uniform_B: Array, temperature: float) -> tuple[Array, Array]:
    """The token where the cumulative distribution of softmax(logits / temperature) passes
    `uniform`, and its log-probability.

    Two levels, so that no cumulative sum over the whole vocabulary is needed: first the block of
    about sqrt(V) entries, then the entry in it. Temperature 0 takes the most probable token, whose
    log-probability is then 0.

    Args:
      logits_BV: of the next token.
      uniform_B: float32 in (0, 1), one random number per row.
      temperature: divides the logits; 0 is greedy.

    Returns: token_B int32, logprob_B float32 in nats.
    """
    if temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), jnp.zeros(
            logits_BV.shape[:1], jnp.float32
        )
    scaled_BV = logits_BV.astype(jnp.float32) / temperature
    shifted_BV = scaled_BV - jnp.max(scaled_BV, axis=-1, keepdims=True)
    weight_BXY, cumulative_BX = _blocks(shifted_BV)
    total_B = cumulative_BX[:, -1]
    token_B = _entry(weight_BXY, cumulative_BX, (uniform_B * total_B)[:, None])
    logprob_B = jnp.take_along_axis(shifted_BV, token_B[:, None], axis=1)[:, 0] - jnp.log(total_B)
    return token_B, jnp.minimum(logprob_B, 0.0)


def token_of_shards(
    logits_BV: Array,
    uniform_B: Array,
    temperature: float,
    *,
    mesh: Mesh,
    axis: str,
    rows: tuple[str, ...],
) -> tuple[Array, Array]:
    """`token` of logits whose vocabulary is sharded: a device sends a few numbers a row, and none of
    its logits.

    The shards agree on the maximum and on where the sum of each begins; the one in which the
    cumulative distribution passes `uniform` gives the token. Sums over shards are added in another
    order than on one device, so that the tokens are equal up to float32 near-ties.

    Args:
      logits_BV: of the next token; the mesh axis divides V.
      uniform_B: float32 in (0, 1), one random number per row.
      temperature: divides the logits; 0 is greedy.
      mesh: that the logits are on.
      axis: of the mesh, over which the vocabulary is sharded.
      rows: axes of the mesh over which rows are sharded.

    Returns: token_B int32, logprob_B float32 in nats.
    """
    return jax.shard_map(
        partial(_on_shard, temperature=temperature, axis=axis),
        mesh=mesh,
        in_specs=(P(rows, axis), P(rows)),
        out_specs=(P(rows), P(rows)),
        check_vma=False,
    )(logits_BV, uniform_B)


def _on_shard(
    logits_BV: Array, uniform_B: Array, *, temperature: float, axis: str
) -> tuple[Array, Array]:
    """`token_of_shards` on one device, whose logits begin at its index times their number."""
    shard, size = jax.lax.axis_index(axis), logits_BV.shape[-1]

    def of_chosen(chosen_B: Array, values_B: Array) -> Array:
        return jax.lax.psum(jnp.where(chosen_B == shard, values_B, 0), axis)

    if temperature == 0.0:
        best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        most_BT = jax.lax.all_gather(jnp.max(logits_BV, axis=-1), axis, axis=1)
        chosen_B = jnp.argmax(most_BT, axis=-1)
        token_B = of_chosen(chosen_B, best_B + shard * size)
        return token_B, jnp.zeros(token_B.shape, jnp.float32)
    scaled_BV = logits_BV.astype(jnp.float32) / temperature
    shifted_BV = scaled_BV - jax.lax.pmax(jnp.max(scaled_BV, axis=-1), axis)[:, None]
    weight_BXY, cumulative_BX = _blocks(shifted_BV)
    sum_BT = jax.lax.all_gather(cumulative_BX[:, -1], axis, axis=1)
    cumulative_BT = jnp.cumsum(sum_BT, axis=-1)
    total_B = cumulative_BT[:, -1]
    target_B1 = (uniform_B * total_B)[:, None]
    chosen_B = _first(cumulative_BT > target_B1, sum_BT > 0)
    before_BT = cumulative_BT - sum_BT
    before_B1 = jnp.take_along_axis(before_BT, chosen_B[:, None], axis=1)
    local_B = _entry(weight_BXY, cumulative_BX, target_B1 - before_B1)
    logprob_B = jnp.take_along_axis(shifted_BV, local_B[:, None], axis=1)[:, 0] - jnp.log(total_B)
    token_B = of_chosen(chosen_B, local_B + shard * size)
    return token_B, of_chosen(chosen_B, jnp.minimum(logprob_B, 0.0))


def _blocks(shifted_BV: Array) -> tuple[Array, Array]:
    """Weights in blocks of about sqrt(V) entries, and the cumulative sum of the blocks."""
    num_rows, vocab_size = shifted_BV.shape
    width = max(1, round(vocab_size**0.5))
    padding = -vocab_size % width
    weight_BXY = jnp.pad(jnp.exp(shifted_BV), ((0, 0), (0, padding))).reshape(num_rows, -1, width)
    return weight_BXY, jnp.cumsum(weight_BXY.sum(axis=-1), axis=-1)


def _entry(weight_BXY: Array, cumulative_BX: Array, target_B1: Array) -> Array:
    """The entry in which the cumulative sum of weights passes the target, int32 `[B]`."""
    block_BX = weight_BXY.sum(axis=-1)
    block_B = _first(cumulative_BX > target_B1, block_BX > 0)
    inner_BY = jnp.take_along_axis(weight_BXY, block_B[:, None, None], axis=1)[:, 0]
    before_B1 = jnp.take_along_axis(cumulative_BX - block_BX, block_B[:, None], axis=1)
    within_B = _first(jnp.cumsum(inner_BY, axis=-1) + before_B1 > target_B1, inner_BY > 0)
    return (block_B * weight_BXY.shape[-1] + within_B).astype(jnp.int32)


def _first(reached_BX: Array, possible_BX: Array) -> Array:
    """First possible index that was reached; the last possible one where rounding left none."""
    size = possible_BX.shape[-1]
    hit_BX = reached_BX & possible_BX
    last_B = size - 1 - jnp.argmax(possible_BX[:, ::-1], axis=-1)
    return jnp.where(hit_BX.any(axis=-1), jnp.argmax(hit_BX, axis=-1), last_B)
