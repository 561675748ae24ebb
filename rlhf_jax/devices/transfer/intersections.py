"""Index boxes that travel between devices when an array's sharding changes: intersections of source
and target shards.

The explicit plan of ReaLHF's parameter reallocation (Mei et al. 2024, arXiv 2406.14088, §4.2 of the
engine: each target shard takes its overlap with every source shard, from a holder on its own device
where there is one), for any pair of shardings instead of tensor and pipeline groups, and without
multicast: a target shard receives exactly what its device lacks,

    Σ over targets d of |box_d| - |box_d ∩ source box on d|,

which is the least that point-to-point copies can move.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from rlhf_jax.refusal import Refusal

Box = tuple[tuple[int, int], ...]
"""(start, stop) of each dimension, in the whole array's indices; () for a scalar."""


class Piece(NamedTuple):
    """A box of the array that `target` takes from `source`, which may be itself."""

    box: Box
    source: Any
    target: Any


def devices_of(sharding: Sharding) -> tuple[Any, ...]:
    """The devices of a sharding in its order.

    Raises Refusal for a sharding whose order of devices is not public.
    """
    if isinstance(sharding, NamedSharding):
        return tuple(sharding.mesh.devices.flat)  # type: ignore[union-attr]
    if isinstance(sharding, SingleDeviceSharding):
        return tuple(sharding.device_set)
    raise Refusal(f"an array lies as {sharding}; accepted: NamedSharding, SingleDeviceSharding")


@lru_cache(maxsize=4096)
def boxes(sharding: Sharding, shape: tuple[int, ...]) -> Mapping[Any, Box]:
    """The box that each device of a sharding holds, in the sharding's order of devices.

    Raises Refusal where a mesh axis does not divide the dimension that it cuts.
    """
    sharding.shard_shape(shape)
    found = sharding.devices_indices_map(shape)

    def box(indices: tuple[slice, ...]) -> Box:
        return tuple(cut.indices(size)[:2] for cut, size in zip(indices, shape, strict=True))

    return {device: box(found[device] or ()) for device in devices_of(sharding)}


def size_of(box: Box) -> int:
    """Elements of a box; 1 of a scalar's."""
    elements = 1
    for start, stop in box:
        elements *= stop - start
    return elements


def intersect(one: Box, other: Box) -> Box | None:
    """The box that two boxes share, or None; along a dimension of size 0 all boxes meet."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    meet = (
        start < stop or a == b == c == d
        for (start, stop), (a, b), (c, d) in zip(shared, one, other, strict=True)
    )
    return shared if all(meet) else None


def relative(box: Box, within: Box) -> tuple[slice, ...]:
    """The box as slices of an array that holds `within`."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, within, strict=True))


def band(box: Box, place: int, num_bands: int) -> Box | None:
    """The `place`-th of `num_bands` parts of a box, cut along its longest dimension; None where
    that one is empty.
    """
    lengths = [stop - start for start, stop in box]
    dim = lengths.index(max(lengths))
    first, size = box[dim][0], lengths[dim]
    part = (first + size * place // num_bands, first + size * (place + 1) // num_bands)
    return (*box[:dim], part, *box[dim + 1 :]) if part[0] < part[1] else None


def holders(sharding: Sharding, shape: tuple[int, ...]) -> dict[Box, list[Any]]:
    """The distinct boxes of a sharding, which part the array among them, and the devices that hold
    each.
    """
    found: dict[Box, list[Any]] = {}
    for device, box in boxes(sharding, shape).items():
        found.setdefault(box, []).append(device)
    return found


def pieces(
    shape: tuple[int, ...], source: Sharding, target: Sharding, place: int = 0, num_bands: int = 1
) -> tuple[Piece, ...]:
    """The boxes that every target device takes, and their source devices.

    A box that the target's own device holds is taken from there. Others come from a holder in the
    same process where there is one, and among those from the one that has sent least so far; equals
    are taken in turn.

    Args:
      shape: of the whole array.
      source, target: where it lies, and where it shall lie.
      place, num_bands: only the `place`-th band of each target's box (see `band`); the bands of all
      places are the whole.
    """
    return tuple(_pieces(shape, source, target, place, num_bands))


def _pieces(
    shape: tuple[int, ...], source: Sharding, target: Sharding, place: int, num_bands: int
) -> Iterator[Piece]:
    held = holders(source, shape)
    sent: Counter[Any] = Counter()
    for turn, (device, whole) in enumerate(boxes(target, shape).items()):
        wanted = band(whole, place, num_bands) if num_bands > 1 else whole
        if wanted is None:
            continue
        for box, owners in held.items():
            shared = intersect(box, wanted)
            if shared is None:
                continue
            if device in owners:
                yield Piece(shared, device, device)
                continue
            ring = owners[turn % len(owners) :] + owners[: turn % len(owners)]
            giver = min(
                ring, key=lambda owner: (owner.process_index != device.process_index, sent[owner])
            )
            sent[giver] += size_of(shared)
            yield Piece(shared, giver, device)


def moved_bytes(
    shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding
) -> Counter[tuple[Any, Any]]:
    """Bytes that travel, by (from device, to device), under the plan of `pieces`; what stays on its
    device is not in it.

    The total is the minimum over all plans of point-to-point copies (the module's formula).
    """
    found: Counter[tuple[Any, Any]] = Counter()
    for piece in pieces(shape, source, target):
        if piece.source != piece.target:
            found[piece.source, piece.target] += size_of(piece.box) * itemsize
    return found
