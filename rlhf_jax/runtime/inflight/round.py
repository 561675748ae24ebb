"""One round through a pool of slots under one version of params: sampling without an overlap with
the rounds before and after it.
"""

import numpy as np

from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.rows import Rows
from rlhf_jax.runtime.spec import Published
from rlhf_jax.types import Samples


def sample_round(pool: SlotPool, params: Published, round_index: int, version: int) -> Samples:
    """Draws all rows of a round: the tokens that `sampling.sample` draws, up to float32 near-ties.

    Rows are admitted in stream order into free slots, the lowest first, at the boundaries between
    segments. It ends with the longest row. The last rows are moved to a quarter of the slots, as
    often as `num_compactions` of the sampling config.

    Args:
      pool: whose slots are all free, and are so again in the end.
      params: of the policy.
      round_index: of the prompts.
      version: updates that params have had; stamped on every token.

    Returns Samples of B = P * G rows, host arrays.
    """
    config, compactions = pool.config, pool.config.sampling.num_compactions
    num_rows = config.prompts_per_round * config.sampling.samples_per_prompt
    rows = Rows.of(config, pool.prompts_of)
    waiting = list(range(round_index * num_rows, (round_index + 1) * num_rows))
    row_S, current = np.full(config.num_slots, -1), pool
    while waiting or (row_S >= 0).any():
        free = np.flatnonzero(row_S < 0)[: len(waiting)]
        admitted, waiting = waiting[: len(free)], waiting[len(free) :]
        if admitted:
            current.admit(params, admitted, free.tolist())
            row_S[free] = admitted
        if not waiting and compactions and (moved := current.quarter()):
            current, compactions, row_S = moved[0], compactions - 1, row_S[moved[1]]
        drawn = current.segment(params)
        rows.add(drawn, row_S.tolist(), version)
        row_S[drawn.ended_S] = -1
    return rows.samples(round_index)
