"""Checks, before anything is compiled, that train states, every policy version that a lag keeps
alive, and the sampled rounds that a clock holds fit in memory.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Device


def bytes_by_device(shapes: object, shardings: object) -> Counter[Device]:
    """Bytes of a tree on each device that its shardings name.

    Args:
      shapes: a tree of arrays or their shapes.
      shardings: a tree of shardings like it.
    """
    bytes_of: Counter[Device] = Counter()
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize
        for device in sharding.device_set:
            bytes_of[device] += size
    return bytes_of


def free_bytes(device: Device) -> int | None:
    """Free bytes of a device, or None where it does not report them (a CPU, or a device of another
    process).
    """
    if device.process_index != jax.process_index():
        return None
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def total_bytes(device: Device) -> int | None:
    """Bytes of a device's memory, or None where they are not known: of a CPU, of a device of another
    process, or of one that is only compiled for.
    """
    if device not in jax.local_devices():
        return None
    return (device.memory_stats() or {}).get("bytes_limit")


def check(
    states: Mapping[Device, int],
    versions: Sequence[Mapping[Device, int]],
    num_live: int,
    free: Callable[[Device], int | None] = free_bytes,
    slots: Mapping[Device, int] | None = None,
    rounds: tuple[int, Mapping[Device, int]] = (0, {}),
) -> None:
    """Raises Refusal, with what would fit, where a device cannot hold its states, live versions and
    sampled rounds.

    Args:
      states: bytes of the train states by device.
      versions: bytes of one published version by device, of each mesh that samples.
      num_live: versions that are held at once: `Clock.live_versions`.
      free: gives a device's free bytes, or None where it does not report them.
      slots: bytes of the rows that are drawn together, by device; None: there are no slots.
      rounds: sampled rounds that are held at once (`Clock.held_rounds`), and bytes of one by device.
    """
    num_rounds, round_bytes = rounds
    version_bytes: Counter[Device] = Counter()
    for version in versions:
        version_bytes.update(version)
    slots = slots or {}
    for device in {*states, *version_bytes, *slots, *round_bytes}:
        left, per_version, of_slots = free(device), version_bytes[device], slots.get(device, 0)
        state, per_round = states.get(device, 0), round_bytes.get(device, 0)
        apart = state + of_slots + num_rounds * per_round
        if left is None or apart + num_live * per_version <= left:
            continue
        fits = (left - apart) // per_version if per_version else 0
        if num_rounds > 1 and apart - (num_rounds - 1) * per_round + num_live * per_version <= left:
            fits = int((left - state - of_slots - num_live * per_version) // per_round)
            advice = (
                f"{fits} round(s) would fit: lower rlhf.buffer_rounds, rlhf.sync_every or rlhf.lag"
            )
        elif fits > 0:
            advice = f"{fits} would fit: lower rlhf.lag"
        elif of_slots and state + per_version < left:
            advice = "lower rlhf.num_slots"
        else:
            advice = "shard over more devices (mesh.fsdp), or sample apart"
        held = f", and the slots {of_slots / 1e9:.2f} GB" if of_slots else ""
        if per_round:
            held += f", and {num_rounds} sampled round(s) {per_round / 1e9:.2f} GB each"
        raise Refusal(
            f"{device} has {left / 1e9:.2f} GB left, but the train states take "
            f"{state / 1e9:.2f} GB and "
            f"{num_live} version(s) of the policy {per_version / 1e9:.2f} GB each{held}; {advice}"
        )
