"""Functions of rows that each device computes on the rows that it holds, with whole params.

The compiler may put the collectives of a function of rows inside its loop over chunks, once a
chunk. Here they are outside: params are gathered once before the loop, and their gradients are
accumulated on each device in float32 and reduced once after it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.types import Array

Rows = TypeVar("Rows")
"""A pytree of arrays with rows first."""
Results = TypeVar("Results")
Sums = TypeVar("Sums")


@dataclass(frozen=True)
class RowShards:
    """Mesh and axes that rows are sharded over; its other axes shard what is inside a row.

    Attributes:
      mesh: of the shards.
      axes: that shard rows.
      blocks: by axis, the number of blocks of consecutive devices that `reduced` adds up apart; an axis
        that is not named is one block. Hosts are such blocks.
    """

    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]
    blocks: tuple[tuple[str, int], ...] = ()

    @property
    def count(self) -> int:
        """The number of shards of rows."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def run(self, function: Callable[..., Results], params: object, rows: object) -> Results:
        """`function(params, rows)` of each shard's own rows; what it returns has rows first.

        Args:
          function: is given local rows and whole params.
          params: a pytree of arrays that are the same on every shard of rows.
          rows: a pytree of arrays whose rows the shards divide evenly.
        """
        of_rows = P(self.axes)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(P(), of_rows),
            out_specs=of_rows,
            axis_names=set(self.axes),
            check_vma=False,
        )(params, rows)

    def gathered(self, param: Array, spec: P) -> Array:
        """A param that is whole on every shard of rows, and sharded over the other axes as it was.

        Args:
          param: is sharded as `spec` says.
          spec: names of mesh axes by dimension.
        """
        whole = P(*(None if name in self.axes else name for name in spec))
        if any(name in dict(self.blocks) for name in spec):
            return self._gathered_in_turn(param, spec, whole)
        return jax.lax.with_sharding_constraint(param, NamedSharding(self.mesh, whole))

    def _gathered_in_turn(self, param: Array, spec: P, whole: P) -> Array:
        """The param gathered inside each block, and then over the blocks: see `_phases`. Over devices in
        three dimensions of a slice libtpu sums the shards on every device instead, with twice the
        bytes on links.
        """

        def gather(shard: Array) -> Array:
            for dim, axis in enumerate(spec):
                for groups in reversed(self._phases(axis)) if axis in self.axes else ():
                    shard = jax.lax.all_gather(
                        shard, axis, axis=dim, tiled=True, axis_index_groups=groups
                    )
            return shard

        run = jax.custom_vjp(self._shard_map(gather, spec, whole))
        run.defvjp(lambda param: (run(param), None), lambda _, by_whole: (by_whole,))
        return run(param)

    def reduced(self, addends: Array, spec: P) -> Array:
        """The sum of one addend from each shard of rows, sharded as `spec` says.

        Where `spec` has an axis of rows, the sum is scattered over it; over the others it is
        reduced.

        Args:
          addends: `[shards, ...]`, one on each shard of rows.
          spec: of the sum.
        """
        names = [*spec, *[None] * (addends.ndim - 1 - len(spec))]
        scattered = {name: dim for dim, name in enumerate(names) if name in self.axes}
        inside = [None if name in self.axes else name for name in names]

        def reduce(addend: Array) -> Array:
            total = addend[0]
            for axis, dim in scattered.items():
                for groups in self._phases(axis):
                    total = jax.lax.psum_scatter(
                        total, axis, scatter_dimension=dim, tiled=True, axis_index_groups=groups
                    )
            others = tuple(
                axis for axis in self.axes if axis not in scattered and self.mesh.shape[axis] > 1
            )
            return jax.lax.psum(total, others) if others else total

        return self._shard_map(reduce, P(self.axes, *inside), P(*names))(addends)

    def _phases(self, axis: str) -> list[list[list[int]] | None]:
        """Groups of devices of an axis that reduce and scatter in turn; None: all of them at once.

        A device of each block takes its share of the sum over the blocks first, and then of the sum
        inside its block. It sends as much as at once, (n − 1)/n of the array. libtpu makes a whole sum
        on every device of a scattered sum over devices in two dimensions of a slice, and sends twice
        as much; of a scattered sum along a ring it does not.
        """
        size, blocks = self.mesh.shape[axis], dict(self.blocks).get(axis, 1)
        if blocks == 1 or blocks == size:
            return [None]
        index = [
            [block * (size // blocks) + i for i in range(size // blocks)] for block in range(blocks)
        ]
        return [[list(column) for column in zip(*index, strict=True)], index]

    def reduced_rounded(self, addends: Array, spec: P, dtype: str) -> Array:
        """`reduced` with addends and sum rounded to a dtype of 2 bytes before they are sent, added in
        their own dtype; `spec` has no axis of rows.

        Each shard adds one part of the array: it is sent that part of every addend, and sends the
        sum of it to all. That is as much as a ring sends, (n − 1)/n of the array twice.

        Args:
          addends: `[shards, ...]`, one on each shard of rows.
          spec: of the sum.
          dtype: such as bfloat16.
        """

        def reduce(addend: Array) -> Array:
            flat = addend.reshape(-1)
            flat = jnp.pad(flat, (0, -flat.size % self.count)).reshape(self.count, -1)
            parts = jax.lax.all_to_all(self._bits(flat, dtype), self.axes, 0, 0, tiled=True)
            part = jax.lax.bitcast_convert_type(parts, jnp.dtype(dtype)).astype(addend.dtype).sum(0)
            bits = jax.lax.all_gather(self._bits(part, dtype), self.axes, tiled=True)
            total = jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype)).astype(addend.dtype)
            return total[: addend.size].reshape(addend.shape[1:])

        return self._shard_map(reduce, P(self.axes, *spec), spec)(addends)

    @staticmethod
    def _bits(array: Array, dtype: str) -> Array:
        """The array rounded to a dtype of 2 bytes, as integers: a compiler may widen numbers before it
        sends them (XLA for CPUs does so with bfloat16), and integers it does not.
        """
        return jax.lax.bitcast_convert_type(array.astype(dtype), jnp.uint16)

    def _shard_map(
        self, function: Callable[[Array], Array], in_spec: P, out_spec: P
    ) -> Callable[[Array], Array]:
        """Maps over all axes of the mesh but those that a function around it is mapped over."""
        mapped = {
            name
            for name, kind in zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
            if kind != jax.sharding.AxisType.Manual
        }
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_spec,
            out_specs=out_spec,
            axis_names=mapped,
            check_vma=False,
        )


def num_chunks(num_rows: int, max_rows: int) -> int:
    """The fewest chunks of at most `max_rows` rows of which none is padded; where those are more
    than twice as many as are needed, these.

    Args:
      num_rows: in all.
      max_rows: of a chunk.
    """
    least = -(-num_rows // max_rows)
    return next((count for count in range(least, 2 * least + 1) if num_rows % count == 0), least)


def scan_chunks(
    function: Callable[[Rows], tuple[Sums, Results]], rows: Rows, max_rows: int
) -> tuple[Sums, Results]:
    """`function(rows) -> (sums, results)` on chunks of contiguous rows: sums are added up in
    float32 and results joined.

    Args:
      function: is called once where the rows are one chunk, and in a scan otherwise. Of rows of
        zeros, which pad the last chunk, it adds nothing to the sums.
      rows: arrays of equally many rows.
      max_rows: of a chunk.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    count = num_chunks(num_rows, max_rows)
    if count == 1:
        return function(rows)
    size = -(-num_rows // count)
    padding = count * size - num_rows

    def split(array: Array) -> Array:
        padded = jnp.pad(array, ((0, padding), *[(0, 0)] * (array.ndim - 1))) if padding else array
        return padded.reshape(count, size, *array.shape[1:])

    chunks = jax.tree.map(split, rows)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], chunks))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(sums: Sums, chunk: Rows) -> tuple[Sums, Results]:
        more, results = function(chunk)
        return jax.tree.map(jnp.add, sums, more), results

    sums, results = jax.lax.scan(body, zeros, chunks)
    return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], results)
