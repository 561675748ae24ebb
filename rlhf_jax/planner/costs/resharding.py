"""Bytes that a device receives or sends when params are resharded from one placement to another, by
intersection of shards.
"""

from functools import cache

import numpy as np

from rlhf_jax.planner.costs.shapes import Leaf, Shape

Layout = tuple[tuple[int, ...], tuple[int, int, int]]
"""Devices, and their mesh shape over (data, fsdp, tensor)."""


@cache
def missing_bytes(
    shape: Shape, item_bytes: int, source: Layout, target: Layout, devices_per_host: int
) -> tuple[float, float]:
    """(bytes from the same host, bytes from other hosts) of the device that moves the most.

    A device receives the elements of its new shards that it does not hold. The source's devices
    send them, an equal share each. A host that holds every shard of the source receives nothing
    from other hosts.

    Args:
      shape: the role's model.
      item_bytes: of one param.
      source, target: layouts.
      devices_per_host: of both.
    """
    taken_T = np.zeros(len(target[0]))
    for leaf in shape.leaves:
        taken_T += (
            leaf.elements * item_bytes * (_share(leaf, target) - _overlap_T(leaf, source, target))
        )
    covering = _covering_hosts(source, devices_per_host)
    is_far_T = np.asarray([device // devices_per_host not in covering for device in target[0]])
    given = taken_T.sum() / len(source[0])
    far = float(np.max(taken_T * is_far_T))
    if far:
        return 0.0, max(far, float((taken_T * is_far_T).sum() / len(source[0])))
    return max(float(taken_T.max()), float(given)), 0.0


def _share(leaf: Leaf, layout: Layout) -> float:
    fsdp, tensor = leaf.parts(*layout[1][1:])
    return 1.0 / (fsdp * tensor)


def _mesh_indices(layout: Layout) -> dict[int, tuple[int, int]]:
    """Each device's index along fsdp and along tensor."""
    _, fsdp, tensor = layout[1]
    return {
        device: (index // tensor % fsdp, index % tensor) for index, device in enumerate(layout[0])
    }


def _overlap_T(leaf: Leaf, source: Layout, target: Layout) -> np.ndarray:
    """Share of the leaf that each target device has already and keeps."""
    have, want = leaf.parts(*source[1][1:]), leaf.parts(*target[1][1:])
    held = _mesh_indices(source)
    overlap_T = np.zeros(len(target[0]))
    for index, (device, wanted) in enumerate(_mesh_indices(target).items()):
        if device in held:
            overlap_T[index] = np.prod(
                [
                    _common(h, n, w, m)
                    for h, n, w, m in zip(held[device], have, wanted, want, strict=True)
                ]
            )
    return overlap_T


def _common(index: int, parts: int, other_index: int, other_parts: int) -> float:
    """Length of the intersection of two intervals of [0, 1]: number `index` of `parts` equal parts,
    and number `other_index` of `other_parts`. An axis that does not shard has one part.
    """
    begin, other_begin = index % parts / parts, other_index % other_parts / other_parts
    return max(0.0, min(begin + 1 / parts, other_begin + 1 / other_parts) - max(begin, other_begin))


def _covering_hosts(layout: Layout, devices_per_host: int) -> set[int]:
    """Hosts whose devices together hold every shard."""
    _, fsdp, tensor = layout[1]
    shards_of_host: dict[int, set[tuple[int, int]]] = {}
    for device, shard in _mesh_indices(layout).items():
        shards_of_host.setdefault(device // devices_per_host, set()).add(shard)
    return {host for host, shards in shards_of_host.items() if len(shards) == fsdp * tensor}
