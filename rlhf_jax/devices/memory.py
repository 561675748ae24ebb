"""Checks, before anything is compiled, that train states and every policy version that a lag keeps
alive fit in memory.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.refusal import Refusal


def bytes_by_device(shapes: Any, shardings: Any) -> Counter[Any]:
    """Bytes of a tree of arrays or shapes on each device that its shardings name."""
    found: Counter[Any] = Counter()
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for device in sharding.device_set:
            found[device] += size
    return found


def free_bytes(device: Any) -> int | None:
    """Free bytes of a device, or None where it does not report them (a CPU, or a device of another
    process).
    """
    if device.process_index != jax.process_index():
        return None
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def check(
    states: Mapping[Any, int],
    versions: Sequence[Mapping[Any, int]],
    num_live: int,
    free: Callable[[Any], int | None] = free_bytes,
) -> None:
    """Raises Refusal, with what would fit, where a device cannot hold its states and live versions.

    Args:
      states: bytes of the train states by device.
      versions: bytes of one published version by device, of each mesh that samples.
      num_live: versions that are held at once: `Clock.live_versions`.
    """
    of_version: Counter[Any] = Counter()
    for version in versions:
        of_version.update(version)
    for device in {*states, *of_version}:
        left = free(device)
        one, needed = of_version[device], states.get(device, 0) + num_live * of_version[device]
        if left is None or needed <= left:
            continue
        fits = (left - states.get(device, 0)) // one if one else 0
        advice = (
            f"{fits} would fit: lower rlhf.lag"
            if fits > 0
            else "shard over more devices (mesh.fsdp), or sample apart"
        )
        raise Refusal(
            f"{device} has {left / 1e9:.2f} GB left, but the train states take "
            f"{states.get(device, 0) / 1e9:.2f} GB and "
            f"{num_live} version(s) of the policy {one / 1e9:.2f} GB each; {advice}"
        )
