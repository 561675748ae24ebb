"""Draws completions: one prefill a prompt, then a compiled decode loop that ends when every row has
ended.

The random number of a token is a function of (seed, purpose, prompt ordinal, sample index,
position): it does not depend on how rows are batched, grouped into rounds or sharded. A token is
drawn by inverting the cumulative distribution with that one uniform number, which costs one random
number a row and not one a vocabulary entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.models.api import Cache, Model, repeat_cache, repeat_rows
from rlhf_jax.models.common import stacking
from rlhf_jax.models.common.layout import sampling_mesh, whole_params
from rlhf_jax.ops import draw, versions
from rlhf_jax.ops.masked import positions_from_mask
from rlhf_jax.types import Array, Params, Prompts, Samples

TENSOR, ROWS = "tensor", ("data", "fsdp")
"""Axes of a mesh that shard the vocabulary, and rows."""
HALF_STEP = (
    2.0**-24
)  # half the distance between neighbouring numbers of `jax.random.uniform` in float32


@dataclass(frozen=True)
class Config:
    """The sampling distribution, and the shape of its compiled program.

    Top-k and top-p are not offered: log-probabilities are those of the whole vocabulary.
    """

    max_completion_tokens: int = 24
    samples_per_prompt: int = 4  # the greedy ones included
    temperature: float = 1.0  # 0 is greedy
    num_compactions: int = (
        0  # how often the rows still being written are gathered into a quarter: see `_decode`
    )
    row_shards: int = 1  # of the mesh; rows are gathered within a shard
    num_greedy: int = 0  # of the samples of a prompt: the last ones take the most probable tokens


class _Loop(NamedTuple):
    position: Array
    length_B: Array
    uniform_CB: Array
    token_B: Array
    done_B: Array
    greedy_B: Array | None
    tokens_CB: Array
    logprob_CB: Array
    mask_CB: Array
    cache: Cache


def _begin(
    uniform_CB: Array, length_B: Array, greedy_B: Array | None, pad_id: int, cache: Cache
) -> _Loop:
    num_positions, num_rows = uniform_CB.shape
    return _Loop(
        position=jnp.int32(0),
        length_B=length_B,
        uniform_CB=uniform_CB,
        token_B=jnp.zeros(num_rows, jnp.int32),
        done_B=jnp.zeros(num_rows, bool),
        greedy_B=greedy_B,
        tokens_CB=jnp.full((num_positions, num_rows), pad_id, jnp.int32),
        logprob_CB=jnp.zeros((num_positions, num_rows), jnp.float32),
        mask_CB=jnp.zeros((num_positions, num_rows), bool),
        cache=cache,
    )


def uniforms(key: Array, ordinal_B: Array, sample_index_B: Array, num_positions: int) -> Array:
    """`[C, B]` float32 in (0, 1): entry (c, b) depends on the key and row b's ordinal, sample index
    and on c, nothing else.

    `jax.random.uniform` gives multiples of 2^-23, of which 0 draws the first token however small
    its probability is. The midpoints between them draw every token as often as its probability
    says, up to 2^-24.

    Args:
      key: of the seed and the purpose.
      ordinal_B: index of each row's prompt in the prompt stream, int32.
      sample_index_B: index of each row among the samples of its prompt, int32.
      num_positions: C.
    """

    def row(ordinal: Array, sample_index: Array) -> Array:
        row_key = jax.random.fold_in(jax.random.fold_in(key, ordinal), sample_index)
        return jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(row_key, c)))(
            jnp.arange(num_positions)
        )

    return jax.vmap(row, out_axes=1)(ordinal_B, sample_index_B) + HALF_STEP


def sample_token(logits_BV: Array, uniform_B: Array, temperature: float) -> tuple[Array, Array]:
    """The token where the cumulative distribution of softmax(logits / temperature) passes
    `uniform`, and its log-probability: see `ops/draw.py`.

    On a mesh whose axis `tensor` divides the vocabulary the logits stay on their shards.

    Args:
      logits_BV: of the next token.
      uniform_B: float32 in (0, 1), one random number per row.
      temperature: divides the logits; 0 is greedy.

    Returns: token_B int32, logprob_B float32 in nats.
    """
    mesh, (num_rows, vocab_size) = sampling_mesh(), logits_BV.shape
    if mesh is None or mesh.shape[TENSOR] == 1 or vocab_size % mesh.shape[TENSOR]:
        return draw.token(logits_BV, uniform_B, temperature)
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    rows = () if num_rows % shards else ROWS
    return draw.token_of_shards(
        logits_BV, uniform_B, temperature, mesh=mesh, axis=TENSOR, rows=rows
    )


def prefill(
    params: Params, prompts: Prompts, model: Model, num_columns: int, samples_per_prompt: int
) -> tuple[Array, Cache]:
    """Logits after the prompt `[B, V]` and the cache of B = P*G rows; each prompt is run once and
    its cache repeated.

    Args:
      params: of the policy.
      prompts: P prompts of Q positions, left-padded.
      model: the policy.
      num_columns: M, the columns of the cache.
      samples_per_prompt: G.
    """
    num_prompts = prompts.tokens_PQ.shape[0]
    cache = stacking.stacked_cache(model.init_cache(num_prompts, num_columns), params)
    positions_PQ = positions_from_mask(prompts.mask_PQ)
    hidden_PQD, cache = model.apply(params, prompts.tokens_PQ, positions_PQ, prompts.mask_PQ, cache)
    assert cache is not None
    logits_PV = model.head(params, hidden_PQD[:, -1])
    return repeat_rows(logits_PV, samples_per_prompt), repeat_cache(cache, samples_per_prompt)


def _decode(
    step: Callable[[_Loop], _Loop], loop: _Loop, num_compactions: int, row_shards: int
) -> _Loop:
    """Steps until every row has ended, or has all its tokens.

    A row that has ended costs a step as much as another. With `num_compactions` > 0 the steps go
    on, once a quarter of the rows or fewer are left, on a batch of a quarter of the size that holds
    them all; then on a quarter of that. Rows keep the column that they write in common, so nothing
    of a step changes but its size. Each size is compiled: a second or more.
    """
    num_positions, num_rows = loop.uniform_CB.shape
    num_compacted = num_rows // row_shards // 4  # of a shard
    compacts = num_compactions > 0 and num_compacted > 0

    def goes_on(loop: _Loop) -> Array:
        live_S = jnp.sum(~loop.done_B.reshape(row_shards, -1), axis=1)
        return (loop.position < num_positions) & (
            jnp.max(live_S) > (num_compacted if compacts else 0)
        )

    loop = jax.lax.while_loop(goes_on, step, loop)
    if not compacts:
        return loop
    index_Sk = jnp.argsort(loop.done_B.reshape(row_shards, -1), axis=1, stable=True)[
        :, :num_compacted
    ]
    small = _decode(step, _rows_of(loop, index_Sk), num_compactions - 1, row_shards)

    def scatter(whole: Array, compacted: Array, axis: int) -> Array:
        compacted_shards, whole_shards = (
            _by_shard(x, axis, row_shards) for x in (compacted, whole)
        )
        return _unsharded(
            jax.vmap(lambda w, i, p: w.at[i].set(p))(whole_shards, index_Sk, compacted_shards), axis
        )

    return loop._replace(
        done_B=scatter(loop.done_B, small.done_B, 0),
        tokens_CB=scatter(loop.tokens_CB, small.tokens_CB, 1),
        logprob_CB=scatter(loop.logprob_CB, small.logprob_CB, 1),
        mask_CB=scatter(loop.mask_CB, small.mask_CB, 1),
    )


def _rows_of(loop: _Loop, index_Sk: Array) -> _Loop:
    """The loop of the rows `index_Sk`; indices are within a shard, so that no row leaves it."""

    def take(array: Array, axis: int = 0) -> Array:
        if not array.ndim:
            return array
        by_shard = _by_shard(array, axis, index_Sk.shape[0])
        return _unsharded(jax.vmap(lambda rows, indices: rows[indices])(by_shard, index_Sk), axis)

    columns = {
        name: take(getattr(loop, name), 1)
        for name in ("uniform_CB", "tokens_CB", "logprob_CB", "mask_CB")
    }
    rows = {name: take(getattr(loop, name)) for name in ("length_B", "token_B", "done_B")}
    greedy_B = None if loop.greedy_B is None else take(loop.greedy_B)
    cache = jax.tree.map(lambda array: take(array, int(array.ndim == 5)), loop.cache)
    return loop._replace(**columns, **rows, greedy_B=greedy_B, cache=cache)


def _by_shard(array: Array, axis: int, row_shards: int) -> Array:
    """`[B, ...]`, with B along `axis`, to `[S, B / S, ...]`."""
    rows_first = jnp.moveaxis(array, axis, 0)
    return rows_first.reshape(row_shards, -1, *rows_first.shape[1:])


def _unsharded(by_shard: Array, axis: int) -> Array:
    return jnp.moveaxis(by_shard.reshape(-1, *by_shard.shape[2:]), 0, axis)


def is_any(token_B: Array, ids: tuple[int, ...]) -> Array:
    """Marks the tokens that are one of some ids, `[B]` bool."""
    return reduce(jnp.logical_or, [token_B == identity for identity in ids])


def sample(
    params: Params,
    prompts: Prompts,
    key: Array,
    version: Array,
    *,
    model: Model,
    config: Config,
    eos_id: int | tuple[int, ...],
    pad_id: int,
) -> Samples:
    """Samples `config.samples_per_prompt` completions of each prompt.

    Args:
      params: of the policy, float32 or the compute dtype.
      prompts: P prompts of Q positions, left-padded.
      key: made of seed and purpose alone; rows are told apart by ordinal, sample index and
        position.
      version: int32 scalar, updates that params have had; stamped on every token.
      eos_id: the token that ends a row, or several of them.

    Returns: Samples of B = P*G rows and C = `config.max_completion_tokens` positions; the mask
    holds the EOS.
    """
    eos_ids = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    num_samples, num_positions = config.samples_per_prompt, config.max_completion_tokens
    num_prompts, prompt_length = prompts.tokens_PQ.shape
    ordinal_B = jnp.repeat(prompts.ordinal_P, num_samples)
    index_B = jnp.tile(jnp.arange(num_samples, dtype=jnp.int32), num_prompts)
    uniform_CB = uniforms(key, ordinal_B, index_B, num_positions)
    # Gathered once, before the loop: a step then has no collective of params or of rows.
    params = whole_params(model, params)
    logits_BV, cache = prefill(params, prompts, model, prompt_length + num_positions, num_samples)
    length_B = jnp.repeat(prompts.mask_PQ.sum(axis=-1, dtype=jnp.int32), num_samples)
    greedy_B = index_B >= num_samples - config.num_greedy if config.num_greedy else None

    def emit(loop: _Loop, logits_BV: Array) -> _Loop:
        token_B, logprob_B = sample_token(
            logits_BV, loop.uniform_CB[loop.position], config.temperature
        )
        if loop.greedy_B is not None:
            greedy = sample_token(logits_BV, loop.uniform_CB[loop.position], 0.0)
            token_B, logprob_B = (
                jnp.where(loop.greedy_B, *pair)
                for pair in zip(greedy, (token_B, logprob_B), strict=True)
            )
        live_B = ~loop.done_B
        token_B = jnp.where(live_B, token_B, pad_id)
        return loop._replace(
            position=loop.position + 1,
            token_B=token_B,
            done_B=loop.done_B | (live_B & is_any(token_B, eos_ids)),
            tokens_CB=loop.tokens_CB.at[loop.position].set(token_B),
            logprob_CB=loop.logprob_CB.at[loop.position].set(jnp.where(live_B, logprob_B, 0.0)),
            mask_CB=loop.mask_CB.at[loop.position].set(live_B),
        )

    def step(loop: _Loop) -> _Loop:
        positions_B1 = (loop.length_B + loop.position - 1)[:, None]
        hidden_B1D, cache = model.apply(
            params, loop.token_B[:, None], positions_B1, ~loop.done_B[:, None], loop.cache
        )
        return emit(loop._replace(cache=cache), model.head(params, hidden_B1D[:, 0]))

    loop = emit(_begin(uniform_CB, length_B, greedy_B, pad_id, cache), logits_BV)
    loop = _decode(step, loop, config.num_compactions, config.row_shards)
    return Samples(
        prompt_tokens_BQ=jnp.repeat(prompts.tokens_PQ, num_samples, axis=0),
        prompt_mask_BQ=jnp.repeat(prompts.mask_PQ, num_samples, axis=0),
        tokens_BC=loop.tokens_CB.T,
        mask_BC=loop.mask_CB.T,
        behavior_logprob_BC=loop.logprob_CB.T,
        finished_B=loop.done_B,
        ordinal_B=ordinal_B,
        sample_index_B=index_B,
        version_BC=versions.broadcast(version, loop.mask_CB.T),
        temperature=jnp.float32(config.temperature),
        samples_per_prompt=num_samples,
    )
