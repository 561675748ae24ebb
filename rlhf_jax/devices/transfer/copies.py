"""Executes a plan of pieces: sliced on the source devices, copied device to device, concatenated on
the target devices.

For a group of arrays, each device slices with one compiled program and concatenates with one. All
pieces that travel are one batched copy. No array passes through host memory, and no result shares a
buffer with a source. (Small pieces packed
into one array for each pair of devices were dispatched in 3.6 instead of 5.8 ms, 28 leaves from 4
devices to 8 on CPU, and compiled in 2.3 instead of 0.7 s: not worth it.)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from rlhf_jax.devices.transfer.intersections import (
    Box,
    boxes,
    chunk,
    devices_of,
    pieces,
    relative,
    size_of,
)
from rlhf_jax.types import Array, Device

Exchange = Callable[[Sequence[Array], Sequence[list[Array]] | None], list[list[Array]]]


@dataclass(frozen=True)
class Leaf:
    """One array of a transfer: source and target sharding, source and target dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype
    result: np.dtype
    source: Sharding
    target: Sharding

    @property
    def carried(self) -> np.dtype:
        """The dtype that travels, the narrower of the two.

        An array is cast before the move to a narrower dtype, and after it to a wider one.
        """
        return min(self.result, self.dtype, key=lambda dtype: dtype.itemsize)


def extra_bytes(leaf: Leaf, chunk_index: int = 0, num_chunks: int = 1) -> int:
    """The most bytes that a device holds beside sources and results while a leaf's pieces travel.

    Args:
      leaf: the array.
      chunk_index, num_chunks: the chunk whose pieces travel (see `intersections.chunk`).
    """
    held: dict[Device, int] = defaultdict(int)
    for box, source, target in pieces(
        leaf.shape, leaf.source, leaf.target, chunk_index, num_chunks
    ):
        if source != target:
            held[source] += size_of(box) * leaf.carried.itemsize
            held[target] += size_of(box) * leaf.carried.itemsize
    return max(held.values(), default=0)


def make_exchange(leaves: Sequence[Leaf], chunk_index: int = 0, num_chunks: int = 1) -> Exchange:
    """Returns a function `(arrays, buffers) -> target shards of each leaf`, in the target's order of
    devices.

    The function only dispatches the copies.

    Args:
      leaves: of the arrays. All have the same source devices, and the same target devices.
      chunk_index, num_chunks: the chunk of a single leaf that it moves (see `intersections.chunk`).
        It writes into the `buffers` that the chunk before returned, and donates them. The first
        chunk is given None and makes them.
    """
    cuts = {device: _Cuts(leaves, device) for device in devices_of(leaves[0].source)}
    joins = {
        device: _Joins(leaves, device, chunk_index, num_chunks)
        for device in devices_of(leaves[0].target)
    }
    # Of each piece that is copied: its source, and its index among the pieces which that sends.
    route: list[tuple[Device, int]] = []
    # Given bare devices, `device_put` would copy one by one.
    targets: list[SingleDeviceSharding] = []
    for leaf_index, leaf in enumerate(leaves):
        for box, source, target in pieces(
            leaf.shape, leaf.source, leaf.target, chunk_index, num_chunks
        ):
            is_local = source == target and not joins[target].is_whole(leaf_index, box)
            joins[target].pieces_of[leaf_index].append((box, None if is_local else len(route)))
            if not is_local:
                route.append((source, cuts[source].add(leaf_index, box)))
                targets.append(SingleDeviceSharding(target))
    for join in joins.values():
        join.close()

    def exchange(
        arrays: Sequence[Array], buffers: Sequence[list[Array]] | None = None
    ) -> list[list[Array]]:
        shards = [
            {shard.device: shard.data for shard in array.addressable_shards} for array in arrays
        ]
        sent = {device: device_cuts.run(shards) for device, device_cuts in cuts.items()}
        leaving = [sent[source][index] for source, index in route]
        arrived = jax.device_put(leaving, targets, may_alias=False) if leaving else []
        results: list[list[Array]] = [[] for _ in leaves]
        for position, join in enumerate(joins.values()):
            own_buffers = [shards_of[position] for shards_of in buffers] if buffers else []
            for leaf_index, shard in join.run(shards, arrived, own_buffers):
                results[leaf_index].append(shard)
        return results

    return exchange


class _Cuts:
    """The shards that one device sends: whole ones unchanged; the others are sliced or cast by one
    program.
    """

    def __init__(self, leaves: Sequence[Leaf], device: Device) -> None:
        self.leaves, self.device = leaves, device
        self.sent: dict[
            tuple[int, Box], int
        ] = {}  # (leaf, box) -> its index in the result of `run`
        self.is_cut: list[bool] = []
        self.program = jax.jit(self.cut)

    def add(self, leaf_index: int, box: Box) -> int:
        """Returns the index of a piece; one that is sent to several devices is sliced once."""
        if (leaf_index, box) not in self.sent:
            leaf = self.leaves[leaf_index]
            self.sent[leaf_index, box] = len(self.sent)
            self.is_cut.append(
                box != boxes(leaf.source, leaf.shape)[self.device] or leaf.carried != leaf.dtype
            )
        return self.sent[leaf_index, box]

    def cut(self, shards: dict[int, Array]) -> list[Array]:
        results = []
        for (leaf_index, box), is_cut in zip(self.sent, self.is_cut, strict=True):
            if is_cut:
                leaf = self.leaves[leaf_index]
                within = boxes(leaf.source, leaf.shape)[self.device]
                results.append(shards[leaf_index][relative(box, within)].astype(leaf.carried))
        return results

    def run(self, shards: Sequence[dict[Device, Array]]) -> list[Array]:
        sent = list(zip(self.sent, self.is_cut, strict=True))
        needed = {
            leaf_index: shards[leaf_index][self.device]
            for (leaf_index, _), is_cut in sent
            if is_cut
        }
        results = iter(self.program(needed) if needed else ())
        return [
            next(results) if is_cut else shards[leaf_index][self.device]
            for (leaf_index, _), is_cut in sent
        ]


class _Joins:
    """The shards that one device concatenates with one program; a shard that arrives whole needs
    none.
    """

    def __init__(
        self, leaves: Sequence[Leaf], device: Device, chunk_index: int, num_chunks: int
    ) -> None:
        self.leaves, self.device, self.chunk_index, self.num_chunks = (
            leaves,
            device,
            chunk_index,
            num_chunks,
        )
        # Of each leaf: (box, its index among the arrivals, or None where it stays on the device).
        self.pieces_of: list[list[tuple[Box, int | None]]] = [[] for _ in leaves]
        self.program = jax.jit(self.join, donate_argnums=2 if chunk_index else ())

    def is_whole(self, leaf_index: int, box: Box) -> bool:
        """True where a box that arrives is the whole target shard."""
        leaf = self.leaves[leaf_index]
        return (
            self.num_chunks == 1
            and leaf.carried == leaf.result
            and box == boxes(leaf.target, leaf.shape)[self.device]
        )

    def close(self) -> None:
        """Call once all pieces are registered. Separates shards that arrive whole from those that
        must be concatenated, and records the inputs of the latter.
        """
        first = [pieces[0] if pieces else ((), None) for pieces in self.pieces_of]
        whole = [
            bool(leaf_pieces) and self.is_whole(leaf_index, leaf_pieces[0][0])
            for leaf_index, leaf_pieces in enumerate(self.pieces_of)
        ]
        self.whole = [
            (leaf_index, arrival)
            for leaf_index, (_, arrival) in enumerate(first)
            if whole[leaf_index] and arrival is not None
        ]
        self.joined = [
            leaf_index for leaf_index in range(len(self.pieces_of)) if not whole[leaf_index]
        ]
        used = [
            (leaf_index, arrival)
            for leaf_index in self.joined
            for _, arrival in self.pieces_of[leaf_index]
        ]
        self.local = {leaf_index for leaf_index, arrival in used if arrival is None}
        self.used = {arrival for _, arrival in used if arrival is not None}

    def join(
        self, local: dict[int, Array], arrived: dict[int, Array], buffers: list[Array]
    ) -> list[Array]:
        results = []
        for leaf_index in self.joined:
            leaf = self.leaves[leaf_index]
            leaf_pieces = []
            for box, arrival in self.pieces_of[leaf_index]:
                if arrival is None:
                    piece = local[leaf_index][
                        relative(box, boxes(leaf.source, leaf.shape)[self.device])
                    ]
                else:
                    piece = arrived[arrival]
                leaf_pieces.append((box, as_bits(piece.astype(leaf.result))))
            joined = _concatenate(leaf_pieces, 0)
            results.append(
                from_bits(joined, leaf.result)
                if self.num_chunks == 1
                else self.written(leaf, joined, buffers)
            )
        return results

    def written(self, leaf: Leaf, joined: Array, buffers: list[Array]) -> Array:
        """The buffer with this chunk written into it; the first chunk makes the buffer."""
        whole = boxes(leaf.target, leaf.shape)[self.device]
        buffer = (
            buffers[0]
            if buffers
            else jnp.zeros([stop - start for start, stop in whole], leaf.result)
        )
        piece = chunk(whole, self.chunk_index, self.num_chunks)
        if piece is None:
            return buffer
        starts = [cut.start for cut in relative(piece, whole)]
        return jax.lax.dynamic_update_slice(buffer, from_bits(joined, leaf.result), starts)

    def run(
        self,
        shards: Sequence[dict[Device, Array]],
        arrived: Sequence[Array],
        buffers: list[Array],
    ) -> list[tuple[int, Array]]:
        """(leaf, shard) of every leaf."""
        results = [(leaf_index, arrived[arrival]) for leaf_index, arrival in self.whole]
        if not self.joined:
            return results
        local = {leaf_index: shards[leaf_index][self.device] for leaf_index in self.local}
        used = {arrival: arrived[arrival] for arrival in self.used}
        return results + list(zip(self.joined, self.program(local, used, buffers), strict=True))


def as_bits(array: Array) -> Array:
    """Floating-point numbers as unsigned integers of their width.

    XLA's CPU compiler computes with bfloat16 in float32, also where it only moves data (two 25152 x
    192 side by side: 25 ms, as uint16 1.3 ms).
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))


def from_bits(array: Array, dtype: jax.typing.DTypeLike) -> Array:
    """Inverts `as_bits`, given the dtype that it was called with."""
    return (
        jax.lax.bitcast_convert_type(array, dtype) if jnp.issubdtype(dtype, jnp.floating) else array
    )


def _concatenate(pieces: list[tuple[Box, Array]], dim: int) -> Array:
    """Concatenates the pieces of a grid, along the last dimension first."""
    if len(pieces) == 1:
        return pieces[0][1]
    columns: dict[tuple[int, int], list[tuple[Box, Array]]] = defaultdict(list)
    for box, piece in pieces:
        columns[box[dim]].append((box, piece))
    joined = [_concatenate(columns[interval], dim + 1) for interval in sorted(columns)]
    return joined[0] if len(joined) == 1 else jnp.concatenate(joined, axis=dim)
