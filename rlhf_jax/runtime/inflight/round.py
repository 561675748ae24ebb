"""One round through a pool of slots under one version of params: sampling without an overlap with
the rounds before and after it.
"""

import numpy as np

from rlhf_jax.runtime.inflight.pool import SlotPool
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
    config, law = pool.config, pool.config.sampling
    group, num_positions = law.samples_per_prompt, law.max_completion_tokens
    num_rows = config.prompts_per_round * group
    tokens_BC = np.full((num_rows, num_positions), config.pad_id, np.int32)
    logprob_BC = np.zeros((num_rows, num_positions), np.float32)
    count_B = np.zeros(num_rows, np.int32)
    row_S, waiting = np.full(config.num_slots, -1), list(range(num_rows))
    current, compactions = pool, law.num_compactions
    while waiting or (row_S >= 0).any():
        free = np.flatnonzero(row_S < 0)[: len(waiting)]
        admitted, waiting = waiting[: len(free)], waiting[len(free) :]
        if admitted:
            first = round_index * num_rows
            current.admit(params, [first + row for row in admitted], free.tolist())
            row_S[free] = admitted
        if not waiting and compactions and (moved := current.quarter()):
            current, compactions, row_S = moved[0], compactions - 1, row_S[moved[1]]
        drawn = current.segment(params)
        for tokens_S, logprob_S, live_S in zip(
            drawn.tokens_TS, drawn.logprob_TS, drawn.live_TS, strict=True
        ):
            rows = row_S[live_S]
            tokens_BC[rows, count_B[rows]] = tokens_S[live_S]
            logprob_BC[rows, count_B[rows]] = logprob_S[live_S]
            count_B[rows] += 1
        row_S[drawn.ended_S] = -1
    prompts = pool.prompts_of(round_index)
    last_B = tokens_BC[np.arange(num_rows), count_B - 1]
    mask_BC = np.arange(num_positions) < count_B[:, None]
    arrays = {
        "prompt_tokens_BQ": np.repeat(prompts.tokens_PQ, group, axis=0),
        "prompt_mask_BQ": np.repeat(prompts.mask_PQ, group, axis=0),
        "tokens_BC": tokens_BC,
        "mask_BC": mask_BC,
        "behavior_logprob_BC": logprob_BC,
        "finished_B": np.isin(last_B, config.eos_id),
        "ordinal_B": np.repeat(prompts.ordinal_P, group),
        "sample_index_B": np.tile(np.arange(group, dtype=np.int32), config.prompts_per_round),
        "version_BC": np.where(mask_BC, np.int32(version), 0),
        "temperature": np.float32(law.temperature),
    }
    return Samples(samples_per_prompt=group, **arrays)
