"""The drain of a pool: the last rows of a round go on in fewer slots."""

import jax

from rlhf_jax.slots.state import Slots
from rlhf_jax.types import Array


def compact(slots: Slots, slot_k: Array) -> Slots:
    """The rows of some slots, in slots of their own. They go on at the same place of the ring.

    Args:
      slots: of which the rows are copied.
      slot_k: int32, different slots; all live ones are among them.
    """
    return jax.tree.map(lambda x: x[slot_k] if x.ndim else x, slots)
