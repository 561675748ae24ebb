"""Micro-batches: rows in parts that run one after the other, so that the activations or caches of
one alone exist at a time.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from rlhf_jax.ops.once import once
from rlhf_jax.types import Array, Max, Metric, Metrics

Tree = TypeVar("Tree")
"""A pytree of arrays with rows first, and of scalars."""
Result = TypeVar("Result")


def split_rows(batch: Tree, num_micro_batches: int, unit_rows: int) -> Tree:
    """`[R, ...]` -> `[num_micro_batches, R / num_micro_batches, ...]`; scalars are repeated.

    A micro-batch has every n-th unit. So each device keeps its rows: contiguous micro-batches would
    move rows between the shards of the data axis.

    Args:
      batch: arrays with R rows first, and scalars.
      num_micro_batches: divides R / unit_rows.
      unit_rows: contiguous rows that stay together.
    """

    def split(array: Array) -> Array:
        if jnp.ndim(array) == 0:
            return jnp.broadcast_to(array, (num_micro_batches,))
        rest = array.shape[1:]
        strided = array.reshape(-1, num_micro_batches, unit_rows, *rest)
        return jnp.moveaxis(strided, 1, 0).reshape(num_micro_batches, -1, *rest)

    return jax.tree.map(split, batch)


def join_rows(micro_batches: Tree, unit_rows: int) -> Tree:
    """The inverse of `split_rows`; a scalar is that of the first micro-batch.

    Args:
      micro_batches: arrays `[num_micro_batches, rows, ...]`, and `[num_micro_batches]` for scalars.
      unit_rows: as they were split.
    """

    def join(array: Array) -> Array:
        if array.ndim == 1:
            return array[0]
        num_micro_batches, _, *rest = array.shape
        by_unit = array.reshape(num_micro_batches, -1, unit_rows, *rest)
        return jnp.moveaxis(by_unit, 0, 1).reshape(-1, *rest)

    return jax.tree.map(join, micro_batches)


def collapse(stacked: Metrics) -> dict[str, Metric]:
    """Metrics of several sets of rows, stacked along their first dimension, as one."""

    def collapse_metric(metric: Metric) -> Metric:
        if isinstance(metric, Max):
            return Max(metric.largest.max(0))
        return jax.tree.map(lambda array: array.sum(0), metric)

    return {name: collapse_metric(metric) for name, metric in stacked.items()}


@once
def map_micro_batches(
    function: Callable[..., Result], num_micro_batches: int, unit_rows: int, units_out: int
) -> Callable[..., Result]:
    """`function(params, rows, *rest)`, computed on `num_parts` parts of the rows in turn.

    Args:
      function: what it returns has rows first in every array, and its scalars are the same whatever
        the rows are.
      unit_rows: rows of the argument that are never separated.
      units_out: rows that such a unit becomes in the result.
    """
    if num_micro_batches == 1:
        return function

    def run(params: object, rows: object, *rest: object) -> Result:
        micro_batches = split_rows(rows, num_micro_batches, unit_rows)
        return join_rows(
            jax.lax.map(lambda micro_batch: function(params, micro_batch, *rest), micro_batches),
            units_out,
        )

    return run
