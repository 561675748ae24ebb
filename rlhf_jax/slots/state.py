"""The state of a pool of slots on the device, and the layout of its columns.

    columns 0 ... Q-1        the slot's prompt, left-padded, written when a row is inserted
    columns Q ... Q+C-1      a ring: all slots write column Q + step mod C in one decode step

A row of n <= C tokens writes n - 1 columns in consecutive steps, so that it never overwrites its
own. What an earlier row has left in the ring has position -1 for the next one.
"""

import jax.numpy as jnp
from flax import struct

from rlhf_jax.models.api import Cache, Model
from rlhf_jax.types import Array


@struct.dataclass
class Slots:
    """Rows that are being drawn, one a slot. M = Q + C columns, T is the time in a segment.

    A slot whose row has ended, or that never had one, is done. It costs a step as much as another.
    """

    keys: tuple[Array, ...]  # one a layer, each [S, J, M, K]
    values: tuple[Array, ...]
    position_SM: Array  # int32, position of the token in a column; -1: none of this row
    step: Array  # int32 scalar, decode steps so far: the next one writes column Q + step mod C
    token_S: Array  # int32, the last token, which is fed in the next step
    logprob_S: Array  # float32, of the first token
    fresh_S: Array  # bool, inserted after the last segment: the first token was not emitted yet
    count_S: Array  # int32, tokens drawn
    length_S: Array  # int32, tokens of the prompt
    done_S: Array  # bool
    uniform_SC: Array  # float32, the random number of each token
    # int32, the place of the row's version among adapters side by side; None: all rows have the
    # params that are given
    version_S: Array | None = None

    @property
    def num_positions(self) -> int:
        """C: most tokens of a row, and columns of the ring."""
        return self.uniform_SC.shape[1]

    @property
    def prompt_columns(self) -> int:
        """Q."""
        return self.position_SM.shape[1] - self.num_positions

    def cache(self) -> Cache:
        """The cache of the next decode step."""
        column = self.prompt_columns + self.step % self.num_positions
        return Cache(self.keys, self.values, self.position_SM, column)


@struct.dataclass
class Emitted:
    """Tokens of one segment. Row 0 of T has the first tokens of the rows that were inserted before
    it, row d those of decode step d.
    """

    tokens_TS: Array  # int32, the pad id where `live_TS` is false
    logprob_TS: Array  # float32, nats; 0 where `live_TS` is false
    live_TS: Array  # bool, the slot drew a token
    ended_S: Array  # bool, the slot is done


def empty(
    model: Model,
    num_slots: int,
    prompt_columns: int,
    num_positions: int,
    has_versions: bool = False,
) -> Slots:
    """Slots without rows. No two arrays share a buffer, so that they can be donated.

    Args:
      model: whose keys and values are held.
      num_slots: S.
      prompt_columns: Q.
      num_positions: C.
      has_versions: each row has a version of its own.
    """
    cache = model.init_cache(num_slots, prompt_columns + num_positions)
    return Slots(
        keys=cache.keys,
        values=cache.values,
        position_SM=cache.position_BM,
        step=jnp.int32(0),
        token_S=jnp.zeros(num_slots, jnp.int32),
        logprob_S=jnp.zeros(num_slots, jnp.float32),
        fresh_S=jnp.zeros(num_slots, bool),
        # One token, which is fed at position 0: a done slot reads and writes valid places.
        count_S=jnp.ones(num_slots, jnp.int32),
        length_S=jnp.zeros(num_slots, jnp.int32),
        done_S=jnp.ones(num_slots, bool),
        uniform_SC=jnp.full((num_slots, num_positions), 0.5, jnp.float32),
        version_S=jnp.zeros(num_slots, jnp.int32) if has_versions else None,
    )
