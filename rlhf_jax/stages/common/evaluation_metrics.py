"""Figures of judged samples: win-rate, gold score, KL, entropy and diversity, with standard errors
over prompts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

Figures = dict[str, float]

# samples among which distinct completions are counted: a share of more samples is of another
# quantity
BLOCK = 64


@dataclass(frozen=True)
class Judged:
    """Samples of the evaluation prompts, judged. Host arrays, rows group-contiguous."""

    prompts: list[str]
    completions: list[str]
    finished_B: np.ndarray
    length_B: np.ndarray
    gold_B: np.ndarray | None  # None where the task has no judge
    reward_B: np.ndarray | None
    kl_B: np.ndarray
    entropy_B: np.ndarray
    reference_nll_B: np.ndarray
    prompt_length_B: np.ndarray

    def rows(self, keep_B: np.ndarray) -> "Judged":
        """The rows that a mask of bools keeps, in their order."""
        indices = np.flatnonzero(keep_B)

        def kept(column: list[str] | np.ndarray | None) -> list[str] | np.ndarray | None:
            if isinstance(column, list):
                return [column[index] for index in indices]
            return None if column is None else column[indices]

        return Judged(**{field.name: kept(getattr(self, field.name)) for field in fields(self)})  # pyright: ignore[reportArgumentType]


def win_rates(prompts: Sequence[str], gold_B: np.ndarray, reference_gold_PR: np.ndarray) -> Figures:
    """The share of samples that beat a reference of their prompt under gold: ties count one half;
    the strict version beside it.

    Args:
      prompts: the prompt of every row, group-contiguous.
      gold_B: gold scores of the samples.
      reference_gold_PR: gold scores of the references of every prompt, in the order of the groups;
        NaN where there is none.

    Returns no figure where no prompt has a reference; a prompt without one is left out.
    Raises AssertionError where the rows are not whole groups of those prompts.
    """
    num_prompts = reference_gold_PR.shape[0]
    group = len(prompts) // num_prompts
    assert gold_B.shape == (len(prompts),), f"{gold_B.shape[0]} scores of {len(prompts)} samples"
    assert group * num_prompts == len(prompts), (
        f"{len(prompts)} samples are no whole groups of {num_prompts} prompts"
    )
    first = list(prompts[::group])
    assert [text for text in first for _ in range(group)] == list(prompts), (
        "rows are not in groups of one prompt"
    )
    there_P = np.logical_not(np.isnan(reference_gold_PR).all(axis=1))
    if not there_P.any():
        return {}
    gold_PG1, reference_P1R = (
        gold_B.reshape(num_prompts, -1, 1)[there_P],
        reference_gold_PR[there_P, None, :],
    )
    compared_PGR = np.broadcast_to(
        ~np.isnan(reference_P1R), (*gold_PG1.shape[:2], reference_P1R.shape[2])
    )
    better_P = (gold_PG1 > reference_P1R).mean(axis=(1, 2), where=compared_PGR)
    of_prompt_P = better_P + 0.5 * (gold_PG1 == reference_P1R).mean(axis=(1, 2), where=compared_PGR)
    texts = [first[place] for place in np.flatnonzero(there_P)]
    return {
        "win_rate": float(of_prompt_P.mean()),
        "win_rate_stderr": stderr_over_prompts(texts, of_prompt_P),
        "win_rate_strict": float(better_P.mean()),
    }


def stderr_over_prompts(prompts: Sequence[str], values_B: np.ndarray) -> float:
    """Standard error of a mean over rows that are independent between prompts only; NaN for a
    single prompt.

    Rows with the same prompt text are one cluster (Liang and Zeger 1986, with the factor n / (n -
    1) of n clusters).
    """
    _, cluster_B = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    sums = np.bincount(cluster_B, weights=values_B - values_B.mean())
    count = len(sums)
    if count < 2:
        return math.nan
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values_B))


def distinct_share(completions: Sequence[str]) -> float:
    """Share of distinct texts among `BLOCK` consecutive samples, the mean over all whole blocks.

    The share falls as more samples are compared, so that the number compared is fixed; all samples
    where there are fewer.
    """
    size = min(BLOCK, len(completions))
    blocks = [
        completions[start : start + size] for start in range(0, len(completions) - size + 1, size)
    ]
    return sum(len(set(block)) for block in blocks) / (size * len(blocks))


def gold_of_references(
    judge: Callable[[Sequence[str], Sequence[str], Sequence[bool]], np.ndarray],
    prompts: Sequence[str],
    references: Sequence[Sequence[str]],
) -> np.ndarray:
    """Gold scores of references, `[P, R]`; NaN in the place of those that a prompt does not have.

    Args:
      judge: (prompts, completions, finished) -> scores.
      prompts: P texts.
      references: of each prompt, at most R texts.
    """
    repeated = [prompt for prompt, texts in zip(prompts, references, strict=True) for _ in texts]
    said = [text for texts in references for text in texts]
    gold_PR = np.full((len(prompts), max(1, *map(len, references))), np.nan)
    there_PR: np.ndarray = np.arange(gold_PR.shape[1])[None] < np.array(
        [[len(texts)] for texts in references]
    )
    if said:
        gold_PR[there_PR] = judge(repeated, said, [True] * len(said))
    return gold_PR


def gold_figures(
    prompts: Sequence[str], gold_B: np.ndarray, reference_gold_PR: np.ndarray
) -> Figures:
    """Gold score and win-rate of fresh samples at temperature 1."""
    return win_rates(prompts, gold_B, reference_gold_PR) | {
        "gold_mean": float(gold_B.mean()),
        "gold_mean_stderr": stderr_over_prompts(prompts, gold_B),
        "gold_std": float(gold_B.std()),
    }


def sampled_figures(judged: Judged) -> Figures:
    """Metrics of fresh samples at temperature 1 that need no judge."""
    tokens = float(judged.length_B.sum())
    figures = {
        "kl": float(judged.kl_B.mean()),
        "kl_stderr": stderr_over_prompts(judged.prompts, judged.kl_B),
        "kl_per_token": float(judged.kl_B.sum() / tokens),
        "entropy": float(judged.entropy_B.sum() / tokens),
        "completion_length": float(judged.length_B.mean()),
        "finished": float(judged.finished_B.mean()),
        "distinct_completions": distinct_share(judged.completions),
    }
    if judged.reward_B is not None:
        figures["reward_mean"] = float(judged.reward_B.mean())
        figures["reward_mean_stderr"] = stderr_over_prompts(judged.prompts, judged.reward_B)
    return figures


def paper_perplexity(greedy: Judged) -> float:
    """exp of a completion's negative log-likelihood under the SFT policy, divided by prompt and
    completion tokens - 1.

    The mean over rows is the "KL (ppl)" of async RLHF (arXiv 2410.18252) as its code computes it,
    on near-greedy completions.
    """
    return float(
        np.exp(greedy.reference_nll_B / (greedy.prompt_length_B + greedy.length_B - 1)).mean()
    )
