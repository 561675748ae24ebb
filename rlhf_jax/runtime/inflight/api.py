"""The interface between the in-flight loops and the pool of slots that they fill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf_jax.runtime.inflight.held import SideBySide
from rlhf_jax.runtime.spec import Published

PoolState = Mapping[str, np.ndarray]
"""Arrays of a pool on the host, by name, from which an equal pool goes on."""


@dataclass(frozen=True)
class Drawn:
    """Tokens of one segment on the host. Row 0 holds the first tokens of rows admitted at this
    boundary, row d the tokens of decode step d; T = segment_steps + 1.
    """

    tokens_TS: np.ndarray  # int32
    logprob_TS: np.ndarray  # float32, nats, of the distribution that was sampled from
    live_TS: np.ndarray  # bool: the slot drew a token in this row
    ended_S: np.ndarray  # bool: the slot's row has its EOS or all its tokens, or the slot is empty


class Pool(Protocol):
    """Slots on the devices of the sampler. Stream row i is of round i // B, has prompt i // G of
    the run's stream, and sample index i % G.
    """

    def admit(
        self,
        params: Published | SideBySide,
        rows: Sequence[int],
        slots: Sequence[int],
        places: Sequence[int] = (),
    ) -> None:
        """Prefills the prompts of stream rows and puts the rows into free slots; each draws its
        first token. Of params side by side `places` has that of each row, which it keeps.
        """
        ...

    def segment(self, params: Published | SideBySide) -> Drawn:
        """At most segment_steps decode steps of all live slots."""
        ...

    def rebuild(self, params: Published) -> None:
        """Computes the keys and values of all live rows again under these params."""
        ...

    def saved(self, keeps_cache: bool) -> PoolState:
        """The state for a checkpoint: with the cache, or the tokens alone."""
        ...

    def restore(self, state: PoolState) -> None:
        """Goes on from a saved state; one without a cache is rebuilt before the next segment."""
        ...
