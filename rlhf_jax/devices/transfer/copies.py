"""Carries out a plan of pieces: cut on the devices that hold them, copied device to device, put
together where they belong.

Everything a device has to cut, and everything it has to put together, of a group of arrays is one
compiled program; all that travels, and every shard that stays where it is, is one batched copy. No
array passes through host memory, and no result shares a buffer with a source. (Small pieces packed
into one array for each pair of devices were dispatched in 3.6 instead of 5.8 ms, 28 leaves from 4
devices to 8 on CPU, and compiled in 2.3 instead of 0.7 s: not worth it.)
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from rlhf_jax.devices.transfer.intersections import (
    Box,
    band,
    boxes,
    devices_of,
    pieces,
    relative,
    size_of,
)
from rlhf_jax.types import Array

Exchange = Callable[[Sequence[Array], Sequence[list[Array]] | None], list[list[Array]]]


@dataclass(frozen=True)
class Leaf:
    """An array to be moved: where it lies and shall lie, as what it lies and shall be."""

    shape: tuple[int, ...]
    dtype: np.dtype
    result: np.dtype
    source: Sharding
    target: Sharding

    @property
    def carried(self) -> np.dtype:
        """The dtype that travels, which is the smaller: cast before the move to a smaller one,
        after it to a larger.
        """
        return min(self.result, self.dtype, key=lambda dtype: dtype.itemsize)


def extra_bytes(leaf: Leaf, place: int = 0, num_bands: int = 1) -> int:
    """The most that a device holds beside sources and results while the leaf's pieces (of one band)
    travel.
    """
    held: dict[Any, int] = defaultdict(int)
    for box, source, target in pieces(leaf.shape, leaf.source, leaf.target, place, num_bands):
        if source != target:
            held[source] += size_of(box) * leaf.carried.itemsize
            held[target] += size_of(box) * leaf.carried.itemsize
    return max(held.values(), default=0)


def make_exchange(leaves: Sequence[Leaf], place: int = 0, num_bands: int = 1) -> Exchange:
    """A function `(arrays, buffers) -> for each leaf the target's shards, in the target's order of
    devices`.

    It returns before anything has been copied.

    Args:
      leaves: what it is given arrays of: all lie on the same devices and go to the same devices.
      place, num_bands: which band of a single leaf it moves (see `pieces.band`): into the `buffers`
      that the band before it
        returned, which it donates; the first makes them and is given None.
    """
    cuts = {device: _Cuts(leaves, device) for device in devices_of(leaves[0].source)}
    joins = {
        device: _Joins(leaves, device, place, num_bands) for device in devices_of(leaves[0].target)
    }
    route: list[
        tuple[Any, int]
    ] = []  # of what is copied: its source, and the place among what that sends
    targets: list[
        SingleDeviceSharding
    ] = []  # given bare devices, `device_put` would copy one by one
    for which, leaf in enumerate(leaves):
        for box, source, target in pieces(leaf.shape, leaf.source, leaf.target, place, num_bands):
            kept = source == target and not joins[target].is_whole(which, box)
            joins[target].parts[which].append((box, None if kept else len(route)))
            if not kept:
                route.append((source, cuts[source].add(which, box)))
                targets.append(SingleDeviceSharding(target))
    for join in joins.values():
        join.close()

    def exchange(
        arrays: Sequence[Array], buffers: Sequence[list[Array]] | None = None
    ) -> list[list[Array]]:
        shards = [
            {shard.device: shard.data for shard in array.addressable_shards} for array in arrays
        ]
        cut = {device: one.run(shards) for device, one in cuts.items()}
        leaving = [cut[source][index] for source, index in route]
        arrived = jax.device_put(leaving, targets, may_alias=False) if leaving else []
        results: list[list[Array]] = [[] for _ in leaves]
        for position, join in enumerate(joins.values()):
            before = [shards_of[position] for shards_of in buffers] if buffers else []
            for which, shard in join.run(shards, arrived, before):
                results[which].append(shard)
        return results

    return exchange


class _Cuts:
    """The shards that one device sends: whole ones unchanged; the others are cut or cast by one
    program.
    """

    def __init__(self, leaves: Sequence[Leaf], device: Any) -> None:
        self.leaves, self.device = leaves, device
        self.sent: dict[tuple[int, Box], int] = {}  # (leaf, box) -> its place in what `run` returns
        self.is_cut: list[bool] = []
        self.program = jax.jit(self.cut)

    def add(self, which: int, box: Box) -> int:
        """The place of a piece; one that goes to several devices is cut once."""
        if (which, box) not in self.sent:
            leaf = self.leaves[which]
            self.sent[which, box] = len(self.sent)
            self.is_cut.append(
                box != boxes(leaf.source, leaf.shape)[self.device] or leaf.carried != leaf.dtype
            )
        return self.sent[which, box]

    def cut(self, shards: dict[int, Array]) -> list[Array]:
        made = []
        for (which, box), is_cut in zip(self.sent, self.is_cut, strict=True):
            if is_cut:
                leaf = self.leaves[which]
                within = boxes(leaf.source, leaf.shape)[self.device]
                made.append(shards[which][relative(box, within)].astype(leaf.carried))
        return made

    def run(self, shards: Sequence[dict[Any, Array]]) -> list[Array]:
        sent = list(zip(self.sent, self.is_cut, strict=True))
        needed = {which: shards[which][self.device] for (which, _), is_cut in sent if is_cut}
        made = iter(self.program(needed) if needed else ())
        return [next(made) if is_cut else shards[which][self.device] for (which, _), is_cut in sent]


class _Joins:
    """The shards that one device concatenates, by one program; a shard that arrives whole needs
    none.
    """

    def __init__(self, leaves: Sequence[Leaf], device: Any, place: int, num_bands: int) -> None:
        self.leaves, self.device, self.place, self.num_bands = leaves, device, place, num_bands
        self.parts: list[list[tuple[Box, int | None]]] = [
            [] for _ in leaves
        ]  # (box, its place among what arrives, or kept)
        self.program = jax.jit(self.join, donate_argnums=2 if place else ())

    def is_whole(self, which: int, box: Box) -> bool:
        """True where a box that arrives is the whole target shard."""
        leaf = self.leaves[which]
        return (
            self.num_bands == 1
            and leaf.carried == leaf.result
            and box == boxes(leaf.target, leaf.shape)[self.device]
        )

    def close(self) -> None:
        """All parts are known: tells the shards that arrive as they shall be from the others, and
        what those need.
        """
        first = [parts[0] if parts else ((), None) for parts in self.parts]
        whole = [
            bool(parts) and self.is_whole(which, parts[0][0])
            for which, parts in enumerate(self.parts)
        ]
        self.whole = [
            (which, arrival)
            for which, (_, arrival) in enumerate(first)
            if whole[which] and arrival is not None
        ]
        self.joined = [which for which in range(len(self.parts)) if not whole[which]]
        used = [(which, arrival) for which in self.joined for _, arrival in self.parts[which]]
        self.kept = {which for which, arrival in used if arrival is None}
        self.used = {arrival for _, arrival in used if arrival is not None}

    def join(
        self, kept: dict[int, Array], arrived: dict[int, Array], before: list[Array]
    ) -> list[Array]:
        made = []
        for which in self.joined:
            leaf = self.leaves[which]
            parts = []
            for box, arrival in self.parts[which]:
                if arrival is None:
                    part = kept[which][relative(box, boxes(leaf.source, leaf.shape)[self.device])]
                else:
                    part = arrived[arrival]
                parts.append((box, as_bits(part.astype(leaf.result))))
            joined = _joined(parts, 0)
            made.append(
                from_bits(joined, leaf.result)
                if self.num_bands == 1
                else self.written(leaf, joined, before)
            )
        return made

    def written(self, leaf: Leaf, joined: Array, before: list[Array]) -> Array:
        """The buffer with this band in it; the first band makes it."""
        whole = boxes(leaf.target, leaf.shape)[self.device]
        buffer = (
            before[0] if before else jnp.zeros([stop - start for start, stop in whole], leaf.result)
        )
        part = band(whole, self.place, self.num_bands)
        if part is None:
            return buffer
        starts = [cut.start for cut in relative(part, whole)]
        return jax.lax.dynamic_update_slice(buffer, from_bits(joined, leaf.result), starts)

    def run(
        self, shards: Sequence[dict[Any, Array]], arrived: Sequence[Array], before: list[Array]
    ) -> list[tuple[int, Array]]:
        """(leaf, shard) of every leaf."""
        results = [(which, arrived[arrival]) for which, arrival in self.whole]
        if not self.joined:
            return results
        kept = {which: shards[which][self.device] for which in self.kept}
        used = {arrival: arrived[arrival] for arrival in self.used}
        return results + list(zip(self.joined, self.program(kept, used, before), strict=True))


def as_bits(array: Array) -> Array:
    """Floating-point numbers as unsigned integers of their width: XLA's CPU compiler computes with
    bfloat16 in float32, also where it only moves them (two 25152 x 192 side by side: 25 ms, as
    uint16 1.3 ms).
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))


def from_bits(array: Array, dtype: Any) -> Array:
    """Undoes `as_bits`."""
    return (
        jax.lax.bitcast_convert_type(array, dtype) if jnp.issubdtype(dtype, jnp.floating) else array
    )


def _joined(parts: list[tuple[Box, Array]], dim: int) -> Array:
    """Parts of a grid as one array: concatenated along the last dimension first."""
    if len(parts) == 1:
        return parts[0][1]
    columns: dict[tuple[int, int], list[tuple[Box, Array]]] = defaultdict(list)
    for box, part in parts:
        columns[box[dim]].append((box, part))
    joined = [_joined(columns[interval], dim + 1) for interval in sorted(columns)]
    return joined[0] if len(joined) == 1 else jnp.concatenate(joined, axis=dim)
