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
from typing import NamedTuple

from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from rlhf_jax.devices.distributed import mesh_of
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device

Box = tuple[tuple[int, int], ...]
"""(start, stop) of each dimension, in the whole array's indices; () for a scalar."""


class Piece(NamedTuple):
    """A box of the array that device `target` takes from device `source`, which may be itself."""

    box: Box
    source: Device
    target: Device


def devices_of(sharding: Sharding) -> tuple[Device, ...]:
    """The devices of a sharding in its order.

    Raises Refusal for a sharding whose order of devices is not public.
    """
    if isinstance(sharding, NamedSharding):
        return tuple(mesh_of(sharding).devices.flat)
    if isinstance(sharding, SingleDeviceSharding):
        return tuple(sharding.device_set)
    raise Refusal(f"an array lies as {sharding}; accepted: NamedSharding, SingleDeviceSharding")


@lru_cache(maxsize=4096)
def boxes(sharding: Sharding, shape: tuple[int, ...]) -> Mapping[Device, Box]:
    """The box that each device of a sharding holds, in the sharding's order of devices.

    Args:
      sharding: of an array.
      shape: of the whole array.

    Raises Refusal where a mesh axis does not divide the dimension that it cuts.
    """
    sharding.shard_shape(shape)
    indices_of = sharding.devices_indices_map(shape)

    def box(indices: tuple[slice, ...]) -> Box:
        return tuple(cut.indices(size)[:2] for cut, size in zip(indices, shape, strict=True))

    return {device: box(indices_of[device] or ()) for device in devices_of(sharding)}


def size_of(box: Box) -> int:
    """Elements of a box; 1 of a scalar's."""
    elements = 1
    for start, stop in box:
        elements *= stop - start
    return elements


def intersect(a_box: Box, b_box: Box) -> Box | None:
    """The box that two boxes share, or None; along a dimension of size 0 all boxes intersect."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(a_box, b_box, strict=True))
    meet = (
        start < stop or a == b == c == d
        for (start, stop), (a, b), (c, d) in zip(shared, a_box, b_box, strict=True)
    )
    return shared if all(meet) else None


def relative(box: Box, within: Box) -> tuple[slice, ...]:
    """The box as slices of an array that holds `within`."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(box, within, strict=True))


def chunk(box: Box, index: int, num_chunks: int) -> Box | None:
    """One of the chunks of a box, cut along its longest dimension; None where it is empty.

    Args:
      box: is cut into `num_chunks` chunks.
      index: of the chunk, from 0.
      num_chunks: 1 or more.
    """
    lengths = [stop - start for start, stop in box]
    dim = lengths.index(max(lengths))
    first, size = box[dim][0], lengths[dim]
    interval = (first + size * index // num_chunks, first + size * (index + 1) // num_chunks)
    return (*box[:dim], interval, *box[dim + 1 :]) if interval[0] < interval[1] else None


def holders(sharding: Sharding, shape: tuple[int, ...]) -> dict[Box, list[Device]]:
    """The distinct boxes of a sharding, which partition the array, and the devices that hold each."""
    devices_by_box: dict[Box, list[Device]] = {}
    for device, box in boxes(sharding, shape).items():
        devices_by_box.setdefault(box, []).append(device)
    return devices_by_box


def pieces(
    shape: tuple[int, ...], source: Sharding, target: Sharding, index: int = 0, num_chunks: int = 1
) -> tuple[Piece, ...]:
    """The boxes that every target device takes, and their source devices.

    A box that the target device holds already is taken from the device itself. Any other box comes
    from a device of the same process that holds it, if one does. Among several, the device that has
    sent least so far is taken, and equals are taken in rotation.

    Args:
      shape: of the whole array.
      source, target: the array's shardings before and after.
      index, num_chunks: only chunk `index` of each target's box is taken (see `chunk`); all chunks
        together are the whole.
    """
    return tuple(_pieces(shape, source, target, index, num_chunks))


def _pieces(
    shape: tuple[int, ...], source: Sharding, target: Sharding, index: int, num_chunks: int
) -> Iterator[Piece]:
    held = holders(source, shape)
    sent: Counter[Device] = Counter()
    for number, (device, whole) in enumerate(boxes(target, shape).items()):
        wanted = chunk(whole, index, num_chunks) if num_chunks > 1 else whole
        if wanted is None:
            continue
        for box, owners in held.items():
            shared = intersect(box, wanted)
            if shared is None:
                continue
            if device in owners:
                yield Piece(shared, device, device)
                continue
            ring = owners[number % len(owners) :] + owners[: number % len(owners)]
            sender = min(
                ring, key=lambda owner: (owner.process_index != device.process_index, sent[owner])
            )
            sent[sender] += size_of(shared)
            yield Piece(shared, sender, device)


def moved_bytes(
    shape: tuple[int, ...], itemsize: int, source: Sharding, target: Sharding
) -> Counter[tuple[Device, Device]]:
    """Bytes that travel, by (from device, to device), under the plan of `pieces`.

    Pieces that stay on their device are not counted. The total is the minimum over all plans of
    point-to-point copies (the module's formula).

    Args:
      shape: of the whole array.
      itemsize: bytes of an element.
      source, target: the array's shardings before and after.
    """
    num_bytes: Counter[tuple[Device, Device]] = Counter()
    for piece in pieces(shape, source, target):
        if piece.source != piece.target:
            num_bytes[piece.source, piece.target] += size_of(piece.box) * itemsize
    return num_bytes
