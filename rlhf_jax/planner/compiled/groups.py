"""Devices that take part in a collective together, as HLO writes them."""

import re
from collections.abc import Sequence
from math import prod

import numpy as np

MESH = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))?\s*\{([^}]*)\}"
IOTA = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"


def groups(attributes: str, num_devices: int) -> list[list[int]]:
    """The devices of each group, as their places in the program's order.

    Reads lists of devices, iotas such as `[2,4]<=[8]` (two groups of four), axes of a mesh such as
    `mesh['x'=2,'y'=4] {'y'}`, with the order of its devices or without, and pairs of a permute.

    Args:
      attributes: of the instruction.
      num_devices: of the program, which a collective without groups runs on.

    Raises ValueError for groups that are written in another form.
    """
    if found := re.search(MESH, attributes):
        return _of_axes(found[1], found[2], found[3])
    if found := re.search(f"replica_groups={IOTA}", attributes):
        return _iota(found[1], found[2], found[3]).tolist()
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", attributes):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=(?!\{\})[^,\s]*", attributes):
        raise ValueError(f"a collective has {found[0]}, which is no known form of groups")
    return [list(range(num_devices))]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(shape: str, sizes: str, order: str | None) -> np.ndarray:
    """Devices in the shape `[groups, devices]`: `arange` of the sizes, transposed, reshaped."""
    devices = np.arange(prod(_numbers(sizes))).reshape(_numbers(sizes))
    if order:
        devices = devices.transpose(_numbers(order))
    return devices.reshape(_numbers(shape))


def _of_axes(mesh: str, order: str | None, axes: str) -> list[list[int]]:
    """Groups over some axes of a mesh, or over parts of axes such as `'y':(2)2`: two indices of
    `y`, after those of another part of size 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    devices = np.arange(prod(sizes.values()))
    if order and (found := re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", order)):
        devices = devices.reshape(_numbers(found[1])).transpose(_numbers(found[2]))
    elif order:
        raise ValueError(f"a mesh has device_ids=({order}, which is no known form of devices")
    shape, taken = [], []
    parts = {
        name: (int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, size // before // part]
        taken.append(len(shape) - 2)
    devices = devices.reshape(shape)
    others = [place for place in range(len(shape)) if place not in taken]
    members = prod(shape[place] for place in taken)
    return devices.transpose([*others, *taken]).reshape(-1, members).tolist()


def crosses(found: Sequence[Sequence[int]], host_of: Sequence[int]) -> bool:
    """True where a group has devices of several hosts.

    Args:
      found: groups of devices.
      host_of: the host of each device, by its place in the program's order.
    """
    return any(len({host_of[device] for device in group}) > 1 for group in found)
