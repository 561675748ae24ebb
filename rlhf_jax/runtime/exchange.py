"""Carries out a plan of pieces: cut on the devices that hold them, copied device to device, put together where they belong.

Everything a device has to cut, and everything it has to put together, of a group of arrays is one compiled program; all that
travels is one batched copy. No array passes through host memory, and no result shares a buffer with a source.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from rlhf_jax.runtime.pieces import Box, Piece, band, boxes, devices_of, pieces, relative, size_of
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
        """The dtype that travels, which is the smaller: cast before the move to a smaller one, after it to a larger."""
        return min(self.result, self.dtype, key=lambda dtype: dtype.itemsize)


def extra_bytes(leaf: Leaf, place: int = 0, num_bands: int = 1) -> int:
    """The most that a device holds beside sources and results while the leaf's pieces (of one band) travel."""
    held: dict[Any, int] = defaultdict(int)
    for box, source, target in pieces(leaf.shape, leaf.source, leaf.target, place, num_bands):
        if source != target:
            held[source] += size_of(box) * leaf.carried.itemsize
            held[target] += size_of(box) * leaf.carried.itemsize
    return max(held.values(), default=0)


def make_exchange(leaves: Sequence[Leaf], place: int = 0, num_bands: int = 1) -> Exchange:
    """A function `(arrays, buffers) -> for each leaf the target's shards, in the target's order of devices`.

    All leaves have elements, lie on the same devices and go to the same devices.

    With bands (one leaf), each call writes its band into the `buffers` that the call before it returned; the first is given
    None. It returns before anything has been copied.
    """
    plans = [pieces(leaf.shape, leaf.source, leaf.target, place, num_bands) for leaf in leaves]
    cuts = {device: _Cuts(leaves, device) for device in devices_of(leaves[0].source)}
    joins = {device: _Joins(leaves, device, place, num_bands) for device in devices_of(leaves[0].target)}
    route = []  # of what travels: its source and place among the source's cuts, and its target
    for which, plan in enumerate(plans):
        for piece in plan:
            if piece.source == piece.target:
                joins[piece.target].take(which, piece.box, None)
            else:
                route.append((piece.source, cuts[piece.source].add(which, piece), piece.target))
                joins[piece.target].take(which, piece.box, len(route) - 1)
    targets = [target for _, _, target in route]
    for one in joins.values():
        one.compile()

    def exchange(arrays: Sequence[Array], buffers: Sequence[list[Array]] | None = None) -> list[list[Array]]:
        shards = [{shard.device: shard.data for shard in array.addressable_shards} for array in arrays]
        cut = {device: one.run(shards) for device, one in cuts.items()}
        leaving = [cut[source][index] for source, index, _ in route]
        arrived = jax.device_put(leaving, targets) if leaving else []
        results: list[list[Array]] = [[] for _ in leaves]
        for position, (_, one) in enumerate(joins.items()):
            before = [shards_of[position] for shards_of in buffers] if buffers else []
            for which, shard in one.run(shards, arrived, before):
                results[which].append(shard)
        return results

    return exchange


class _Cuts:
    """What one device sends: whole shards as they are, and what has to be cut or cast by one compiled program."""

    def __init__(self, leaves: Sequence[Leaf], device: Any) -> None:
        self.leaves, self.device = leaves, device
        self.sent: dict[tuple[int, Box], int] = {}  # (leaf, box) -> place in the list that `run` returns
        self.program = jax.jit(self.cut)

    def add(self, which: int, piece: Piece) -> int:
        return self.sent.setdefault((which, piece.box), len(self.sent))

    def is_whole(self, which: int, box: Box) -> bool:
        leaf = self.leaves[which]
        return box == boxes(leaf.source, leaf.shape)[self.device] and leaf.carried == leaf.dtype

    def cut(self, shards: dict[int, Array]) -> list[Array]:
        found = []
        for which, box in self.sent:
            if not self.is_whole(which, box):
                leaf = self.leaves[which]
                within = boxes(leaf.source, leaf.shape)[self.device]
                found.append(shards[which][relative(box, within)].astype(leaf.carried))
        return found

    def run(self, shards: Sequence[dict[Any, Array]]) -> list[Array]:
        needed = {which: shards[which][self.device] for which, box in self.sent if not self.is_whole(which, box)}
        made = iter(self.program(needed) if needed else ())
        return [shards[which][self.device] if self.is_whole(which, box) else next(made) for which, box in self.sent]


class _Joins:
    """What one device puts together, by one compiled program; a shard that arrives whole needs none."""

    def __init__(self, leaves: Sequence[Leaf], device: Any, place: int, num_bands: int) -> None:
        self.leaves, self.device, self.place, self.num_bands = leaves, device, place, num_bands
        self.parts: dict[int, list[tuple[Box, int | None]]] = {
            which: [] for which, leaf in enumerate(leaves) if device in boxes(leaf.target, leaf.shape)
        }
        self.finished: dict[int, int] = {}  # leaf -> what arrives, which is its shard

    def take(self, which: int, box: Box, arriving: int | None) -> None:
        self.parts[which].append((box, arriving))

    def compile(self) -> None:
        for which, parts in self.parts.items():
            (_, arriving), *others = parts or [((), None)]
            as_it_is = self.leaves[which].carried == self.leaves[which].result and self.num_bands == 1
            if arriving is not None and not others and as_it_is:
                self.finished[which] = arriving
        self.joined = [which for which in self.parts if which not in self.finished]
        self.program = jax.jit(self.join, donate_argnums=2 if self.place else ())

    def join(self, local: dict[int, Array], arrived: dict[int, Array], before: list[Array]) -> list[Array]:
        made = []
        for which in self.joined:
            leaf = self.leaves[which]
            whole = boxes(leaf.target, leaf.shape)[self.device]
            here = boxes(leaf.source, leaf.shape).get(self.device)
            parts = [
                (box, arrived[arriving] if arriving is not None else local[which][relative(box, here)])
                for box, arriving in self.parts[which]
            ]
            parts = [(box, part.astype(leaf.result)) for box, part in parts]
            if self.num_bands == 1:
                made.append(jnp.copy(_joined(parts, 0)))
            else:
                made.append(self.written(leaf, whole, parts, before))
        return made

    def written(self, leaf: Leaf, whole: Box, parts: list[tuple[Box, Array]], before: list[Array]) -> Array:
        """The buffer with this band in it; the first band makes it."""
        part = band(whole, self.place, self.num_bands)
        buffer = before[0] if before else jnp.zeros([stop - start for start, stop in whole], leaf.result)
        if part is None:
            return buffer
        starts = [cut.start for cut in relative(part, whole)]
        return jax.lax.dynamic_update_slice(buffer, _joined(parts, 0), starts)

    def run(
        self, shards: Sequence[dict[Any, Array]], arrived: Sequence[Array], before: list[Array]
    ) -> list[tuple[int, Array]]:
        results = [(which, arrived[arriving]) for which, arriving in self.finished.items()]
        if not self.joined:
            return results
        local, used = {}, {}
        for which in self.joined:
            for _, arriving in self.parts[which]:
                if arriving is None:
                    local[which] = shards[which][self.device]
                else:
                    used[arriving] = arrived[arriving]
        return results + list(zip(self.joined, self.program(local, used, before), strict=True))


def _joined(parts: list[tuple[Box, Array]], dim: int) -> Array:
    """Parts of a grid as one array: concatenated along the last dimension first."""
    if len(parts) == 1:
        return parts[0][1]
    columns: dict[tuple[int, int], list[tuple[Box, Array]]] = defaultdict(list)
    for box, part in parts:
        columns[box[dim]].append((box, part))
    joined = [_joined(columns[interval], dim + 1) for interval in sorted(columns)]
    return joined[0] if len(joined) == 1 else jnp.concatenate(joined, axis=dim)
