"""Prompts in buckets of length: a batch whose longest prompt falls into a bucket is computed in that
bucket's width, without the columns of padding before it.

Prompts are padded on the left, so that narrower rows are the last columns of wider ones. Masked
columns have no weight in any model: results differ by rounding alone. Each bucket is compiled.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops.once import once
from rlhf_jax.types import Array, Prompts, Samples

Result = TypeVar("Result")
"""A pytree of arrays with rows first."""


def widths(length: int, num_buckets: int) -> tuple[int, ...]:
    """The widths of buckets, rising to `length`.

    >>> widths(512, 4)
    (128, 256, 384, 512)
    >>> widths(5, 2)
    (3, 5)

    Args:
      length: Q, the positions of the longest prompt.
      num_buckets: at most so many; fewer where two would have one width.
    """
    return tuple(sorted({-(-length * k // num_buckets) for k in range(1, num_buckets + 1)}))


def bucket_of(longest: int, width_of_bucket: Sequence[int]) -> int:
    """The narrowest width that holds a prompt.

    Args:
      longest: tokens of the longest prompt of a batch.
      width_of_bucket: as `widths` gives them.
    """
    return next(width for width in width_of_bucket if width >= longest)


def narrowed(prompts: Prompts, width: int) -> Prompts:
    """Prompts without their first columns, which must be padding in all of them.

    Args:
      prompts: of Q positions.
      width: of the result, at most Q.
    """
    return prompts.replace(  # type: ignore[attr-defined]
        tokens_PQ=prompts.tokens_PQ[:, -width:], mask_PQ=prompts.mask_PQ[:, -width:]
    )


@once
def in_buckets(function: Callable[..., Result], num_buckets: int) -> Callable[..., Result]:
    """Wraps a score so that it is computed in the narrowest bucket that holds its longest prompt.

    One program has a branch for each bucket, and runs one of them.

    Args:
      function: `(params, samples) -> rows`, whose shapes do not depend on Q.
      num_buckets: of `widths`.
    """

    def run(params: object, samples: Samples) -> Result:
        width_of_bucket = widths(samples.prompt_mask_BQ.shape[1], num_buckets)
        longest = samples.prompt_mask_BQ.sum(axis=1).max()
        bucket = (longest > jnp.array(width_of_bucket[:-1], longest.dtype)).sum()

        def branch(width: int) -> Callable[[object, Samples], Result]:
            return lambda params, samples: function(params, _narrowed_samples(samples, width))

        return jax.lax.switch(bucket, [branch(w) for w in width_of_bucket], params, samples)

    return run


def _narrowed_samples(samples: Samples, width: int) -> Samples:
    return samples.replace(  # type: ignore[attr-defined]
        prompt_tokens_BQ=samples.prompt_tokens_BQ[:, -width:],
        prompt_mask_BQ=samples.prompt_mask_BQ[:, -width:],
    )


@once
def by_length(
    function: Callable[..., Result], num_micro_batches: int, group: int, row_shards: int
) -> Callable[..., Result]:
    """Wraps a score in micro-batches so that prompts of a length share a micro-batch. Results have the
    order of the samples.

    No row leaves its shard. Rows stay as they are where a shard's groups do not divide into the
    micro-batches.

    Args:
      function: `(params, samples) -> rows`; its micro-batch j has every n-th group, as
        `micro_batches.split_rows` makes them.
      num_micro_batches: n.
      group: samples of a prompt, which stay together.
      row_shards: of the mesh.
    """
    if num_micro_batches == 1:
        return function

    def run(params: object, samples: Samples) -> Result:
        groups = samples.ordinal_B.shape[0] // group // row_shards
        if groups % num_micro_batches:
            return function(params, samples)
        length_SP = samples.prompt_mask_BQ.sum(axis=1).reshape(row_shards, groups, group)[:, :, 0]
        by_length_SP = jnp.argsort(length_SP, axis=1, stable=True)
        # place i n + j holds the i-th prompt of micro-batch j, which has consecutive lengths
        strided_SP = (
            by_length_SP.reshape(row_shards, num_micro_batches, -1)
            .swapaxes(1, 2)
            .reshape(row_shards, groups)
        )
        back_SP = jnp.argsort(strided_SP, axis=1)
        rows = function(params, _taken(samples, strided_SP, group))
        return _taken(rows, back_SP, group)

    return run


def _taken(rows: Result, index_SP: Array, group: int) -> Result:
    """Groups of rows in another order within each shard; scalars are as they were."""

    def take(array: Array) -> Array:
        if array.ndim == 0:
            return array
        by_shard = array.reshape(*index_SP.shape, group, *array.shape[1:])
        return jax.vmap(lambda groups, index: groups[index])(by_shard, index_SP).reshape(
            array.shape
        )

    return jax.tree.map(take, rows)


def sorted_batches(prompts: Prompts, size: int, num_buckets: int) -> list[tuple[Prompts, int]]:
    """Batches of prompts of similar lengths, each in the width of its bucket, and how many prompts of
    each count.

    A last batch that is not full is filled with its first prompt.

    Args:
      prompts: host arrays.
      size: prompts of a batch.
      num_buckets: of `widths`.
    """
    width_of_bucket = widths(prompts.mask_PQ.shape[1], num_buckets)
    length_P = np.asarray(prompts.mask_PQ).sum(axis=1)
    order_P = np.argsort(length_P, kind="stable")
    found = []
    for start in range(0, len(order_P), size):
        chosen = order_P[start : start + size]
        filled = np.concatenate([chosen, np.repeat(chosen[:1], size - len(chosen))])
        batch = jax.tree.map(lambda array, filled=filled: array[filled], prompts)
        width = bucket_of(int(length_P[chosen].max()), width_of_bucket)
        found.append((narrowed(batch, width), len(chosen)))
    return found
