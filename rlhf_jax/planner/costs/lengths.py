"""Expected decoding steps of a batch whose rows end at random: exact expectations of order
statistics.

With F the share of lengths at most t, drawn alone for each row, the probability that of n rows at
most k are left after t tokens is the binomial P(Bin(n, 1 − F(t)) <= k), and over S shards its S-th
power. A loop that ends when at most k are left on every shard takes Σ_t (1 − that) tokens, up to
the limit (David and Nagaraja 2003, Order Statistics, §2.1). Rows of a prompt are taken to end
independently of each other; the lengths of a task are more alike within a group.
"""

import math
from functools import cache

import numpy as np


@cache
def decode_steps(
    lengths: tuple[int, ...], limit: int, rows_per_shard: int, row_shards: int, num_compactions: int
) -> tuple[tuple[int, float], ...]:
    """Rows of a shard, and expected decode steps at that size, as `sampling._decode` compacts.

    The first token comes from the prefill and is no step.

    Args:
      lengths: draws of the distribution in tokens, the EOS included; () is `limit` for every row.
      limit: tokens after which every completion ends.
      rows_per_shard: before the first compaction.
      row_shards: shards that decode together.
      num_compactions: each keeps a quarter of the rows.
    """
    sizes, done = [], 0.0
    rows = rows_per_shard
    while True:
        compacted = rows // 4 if num_compactions > 0 else 0
        reached = expected_tokens(lengths, limit, rows_per_shard, row_shards, compacted) - 1.0
        sizes.append((rows, reached - done))
        if not compacted:
            return tuple(sizes)
        rows, done, num_compactions = compacted, reached, num_compactions - 1


@cache
def expected_tokens(
    lengths: tuple[int, ...], limit: int, rows: int, row_shards: int, left: int
) -> float:
    """Expected tokens drawn until at most `left` rows of every shard have not ended; at least 1.

    Args:
      lengths: draws of the distribution in tokens, the EOS included; () is `limit` for every row.
      limit: tokens after which every completion ends.
      rows: of each shard.
      row_shards: shards that decode together.
      left: rows.
    """
    if not lengths:
        return float(limit)
    ended_T = np.searchsorted(
        np.sort(np.minimum(lengths, limit)), np.arange(1, limit), side="right"
    ) / len(lengths)
    return 1.0 + float(np.sum(1.0 - binomial_at_most(left, rows, 1.0 - ended_T) ** row_shards))


def binomial_at_most(most: int, trials: int, chance_T: np.ndarray) -> np.ndarray:
    """P(Bin(trials, chance) <= most), summed in logarithms."""
    most = min(most, trials)
    log_choose_k = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        for k in range(most + 1)
    ]
    k_k1 = np.arange(most + 1)[:, None]
    inner_T = np.clip(chance_T, 1e-300, 1.0 - 1e-16)[None]
    log_kT = (
        np.asarray(log_choose_k)[:, None]
        + k_k1 * np.log(inner_T)
        + (trials - k_k1) * np.log1p(-inner_T)
    )
    at_most_T = np.minimum(np.exp(log_kT).sum(axis=0), 1.0)
    return np.where(
        chance_T <= 0.0, 1.0, np.where(chance_T >= 1.0, float(most == trials), at_most_T)
    )
