"""The choice of live groups: a round samples more prompts than it keeps (DAPO's dynamic sampling).

With κ = `rlhf.oversample` and P prompts kept, round r samples the prompts r*κ*P ... (r+1)*κ*P - 1 of
the stream. A group is live where its scores are not all equal, flat otherwise. The first P live
groups in the order of the prompts are kept. Where fewer are live, the first flat ones fill the round
up. Kept groups stay in the order of their prompts.

    scores of four groups, P = 2       live         kept     left out
    [1 1] [0 1] [1 0] [0 1]            1, 2, 3      1, 2     0 flat, 3 surplus
    [1 1] [0 0] [1 0] [1 1]            2            0, 2     1 and 3 flat
    [1 1] [0 0] [0 0] [1 1]            none         0, 1     2 and 3 flat

DAPO (Yu et al. 2025, arXiv 2503.14476, section 3.2) samples on until P groups are live, so that its
number of prompts depends on who is lucky. Here κ is fixed: the prompts of a round are a function of
its number, on every clock and after every restart.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kept:
    """The groups of a sampled round that are kept.

    Attributes:
      group_P: int32 `[P]`, indices of the kept groups among the N sampled ones, ascending.
      is_live_N: bool `[N]`, N = κP, in the order of the prompts.
    """

    group_P: np.ndarray
    is_live_N: np.ndarray

    @property
    def live_share(self) -> float:
        """Live groups among the sampled ones."""
        return float(self.is_live_N.mean())

    @property
    def flat_share(self) -> float:
        """Flat groups among the kept ones."""
        return float(1.0 - self.is_live_N[self.group_P].mean())

    def left_out(self, first_ordinal: int) -> dict[str, list[int]]:
        """Ordinals of the prompts that are not kept, ascending: `flat`, and live but not needed,
        `surplus`.

        Args:
          first_ordinal: of the round's prompts.
        """
        left_N = np.ones(len(self.is_live_N), bool)
        left_N[self.group_P] = False
        groups = {"flat": left_N & ~self.is_live_N, "surplus": left_N & self.is_live_N}
        return {
            reason: (first_ordinal + np.flatnonzero(is_left_N)).tolist()
            for reason, is_left_N in groups.items()
        }


def live_groups(score_B: np.ndarray, samples_per_prompt: int) -> np.ndarray:
    """Groups whose scores are not all equal, bool `[N]`.

    Equal means the same number in float32: each score is compared with its group's first one. A
    standard deviation is no test of it, because the mean of equal numbers may differ from them.

    Args:
      score_B: scores of N groups, one after another. What enters it decides what a flat group is:
        the task's score, before any penalty.
      samples_per_prompt: G.
    """
    score_NG = np.asarray(score_B).astype(np.float32).reshape(-1, samples_per_prompt)
    return (score_NG != score_NG[:, :1]).any(axis=1)


def keep(is_live_N: np.ndarray, num_kept: int) -> Kept:
    """The first live groups, and flat ones where there are too few.

    Args:
      is_live_N: bool, in the order of the prompts.
      num_kept: P, at most N.
    """
    live_first = np.argsort(~is_live_N, kind="stable")
    return Kept(np.sort(live_first[:num_kept]).astype(np.int32), is_live_N)
