"""The formulas of policy gradients in float64, a group and a token at a time, as the papers write
them.
"""

from collections.abc import Callable

import numpy as np

from rlhf_jax.ops.corrections import Correction
from rlhf_jax.types import Batch, Outputs, Samples, Scores

UNCORRECTED = Correction("behavior", "none")


def rows_of_tokens(array_BC, samples: Samples) -> list[np.ndarray]:
    """The unmasked entries of each row, float64; none, without an array."""
    mask_BC = np.asarray(samples.mask_BC)
    return [
        np.asarray(row_C, np.float64)[mask_C]
        for row_C, mask_C in zip(np.asarray(array_BC), mask_BC, strict=True)
    ]


def groups(values_B, samples: Samples) -> list[list[float]]:
    """The values of each prompt's samples."""
    size = samples.samples_per_prompt
    return [
        [float(v) for v in values_B[start : start + size]]
        for start in range(0, len(values_B), size)
    ]


def leave_one_out(group: list[float]) -> list[float]:
    return [
        group[i] - sum(group[:i] + group[i + 1 :]) / (len(group) - 1) for i in range(len(group))
    ]


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    """−min(ρ A, clip(ρ) A)."""
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def weight(log_ratio: float, correction: Correction) -> float:
    """Of one token or completion, from log π_proximal − log π_behavior."""
    if correction.correction == "truncate":
        return min(np.exp(log_ratio), correction.cap)
    if correction.correction == "mask":
        return np.exp(log_ratio) if correction.floor <= np.exp(log_ratio) <= correction.cap else 0.0
    return 1.0


def token_laws(samples: Samples, scores: Scores, outputs: Outputs):
    """Log-probabilities of each row's tokens: policy, behaviour, proximal (behaviour where there is
    none).
    """
    proximal_BC = scores.proximal_logprob_BC
    given = (outputs.logprob_RC, samples.behavior_logprob_BC)
    return [
        rows_of_tokens(a, samples)
        for a in (*given, samples.behavior_logprob_BC if proximal_BC is None else proximal_BC)
    ]


def group_policy_loss(
    samples: Samples,
    scores: Scores,
    outputs: Outputs,
    advantage: Callable[[list[float]], list[float]],
    *,
    aggregation: str,
    kl_weight: float = 0.0,
    clip: tuple[float, float] = (0.2, 0.2),
    correction: Correction = UNCORRECTED,
) -> float:
    """The mean that `aggregation` names, of GRPO and of those that differ from it in the advantage."""
    advantages = [a for group in groups(scores.score_B, samples) for a in advantage(group)]
    policy, behavior, proximal = token_laws(samples, scores, outputs)
    base = behavior if correction.ratio_to == "behavior" else proximal
    reference = rows_of_tokens(scores.reference_logprob_BC, samples) if kl_weight else policy
    rows = []
    for i, advantage_of_row in enumerate(advantages):
        terms = []
        for t in range(len(policy[i])):
            stale = weight(proximal[i][t] - behavior[i][t], correction)
            ratio, log_r = np.exp(policy[i][t] - base[i][t]), reference[i][t] - policy[i][t]
            kl = np.exp(log_r) - 1 - log_r
            terms.append(stale * clipped(ratio, advantage_of_row, *clip) + kl_weight * kl)
        rows.append(terms)
    if aggregation == "sequence":
        return float(np.mean([np.mean(terms) for terms in rows]))
    counts = {"token": sum(map(len, rows)), "constant_length": len(rows) * samples.mask_BC.shape[1]}
    return sum(map(sum, rows)) / counts[aggregation]


def advantage_rows(batch: Batch, samples: Samples) -> list[float]:
    """A batch's advantage of each row; raises AssertionError where it is not the same at all of its
    tokens.
    """
    rows = rows_of_tokens(batch.advantage_RC, samples)
    assert all(len(set(row)) == 1 for row in rows)
    return [float(row[0]) for row in rows]
