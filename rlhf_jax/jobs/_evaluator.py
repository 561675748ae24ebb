"""Evaluation on held-out prompts: gold score, win-rate against references, KL to the reference, and diversity."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sample
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.jobs.relabel import sampler
from rlhf_jax.models.api import Model
from rlhf_jax.ops.divergences import full_kl
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import ModelReward
from rlhf_jax.runtime import hosts
from rlhf_jax.score import MAX_LOGITS, completion_hidden
from rlhf_jax.types import Array, Params, Samples

Figures = dict[str, float]

GREEDY_NAMES = {
    "win_rate": "win_rate_greedy",
    "win_rate_stderr": "win_rate_greedy_stderr",
    "win_rate_strict": "win_rate_strict_greedy",
}


@dataclass(frozen=True)
class Config:
    """Fresh samples at temperature 1, and greedy ones, on the first prompts of the held-out stream."""

    num_prompts: int = 1024  # of the first and the last evaluation of a run
    num_prompts_between: int = 256  # of those between
    samples_per_prompt: int = 4
    references_per_prompt: int = 4
    prompts_per_batch: int = 256
    max_completion_tokens: int = 0  # 0: as in training
    part: int = 0  # of num_parts into which held-out prompts are dealt: a study chooses on one and reports on another
    num_parts: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.num_parts:
            raise Refusal(f"evaluate.part is {self.part}; accepted: 0 to evaluate.num_parts - 1 = {self.num_parts - 1}")
        for name in ("num_prompts", "num_prompts_between"):
            if getattr(self, name) % self.prompts_per_batch or getattr(self, name) < self.prompts_per_batch:
                raise Refusal(
                    f"evaluate.{name} is {getattr(self, name)}; accepted: multiples of evaluate.prompts_per_batch = "
                    f"{self.prompts_per_batch}"
                )


@dataclass(frozen=True)
class Judged:
    """Samples of one law on the evaluation prompts, judged. Host arrays, rows group-contiguous."""

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


def divergence(
    params: Params, reference_params: Params, samples: Samples, *, model: Model
) -> tuple[Array, Array, Array]:
    """Per row, summed over the completion's tokens, at temperature 1 and in nats: full-vocabulary KL to the reference, entropy,
    and the reference's negative log-likelihood. `[B]` each; logits in chunks of at most `MAX_LOGITS`."""
    rows = (samples.prompt_tokens_BQ, samples.prompt_mask_BQ, samples.tokens_BC, samples.mask_BC)
    hidden = completion_hidden(params, *rows, model)
    reference_hidden = completion_hidden(reference_params, *rows, model)
    num_rows, length, width = hidden.shape

    def chunk(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        hidden_ND, reference_ND, tokens_N = inputs
        logits, reference_logits = model.head(params, hidden_ND), model.head(reference_params, reference_ND)
        logprob, reference_logprob = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference_logits)
        entropy_N = -(jnp.exp(logprob) * logprob).sum(axis=-1)
        chosen_N = jnp.take_along_axis(reference_logprob, tokens_N[:, None], axis=-1)[:, 0]
        return full_kl(logits, reference_logits), entropy_N, -chosen_N

    total = num_rows * length
    size = max(1, min(total, MAX_LOGITS // model.vocab_size))
    padding = -total % size
    inputs = (
        jnp.pad(hidden.reshape(total, width), ((0, padding), (0, 0))).reshape(-1, size, width),
        jnp.pad(reference_hidden.reshape(total, width), ((0, padding), (0, 0))).reshape(-1, size, width),
        jnp.pad(samples.tokens_BC.reshape(total), (0, padding)).reshape(-1, size),
    )
    outputs = jax.lax.map(chunk, inputs)

    def per_row(values: Array) -> Array:
        return jnp.where(samples.mask_BC, values.reshape(-1)[:total].reshape(num_rows, length), 0.0).sum(axis=-1)

    return per_row(outputs[0]), per_row(outputs[1]), per_row(outputs[2])


class Evaluator:
    """Compiles once; evaluates any params of the run's model."""

    def __init__(
        self,
        workspace: Workspace,
        config: Config,
        reference_params: Params,
        reward: Callable[[Samples], np.ndarray] | None = None,
    ):
        """`reward` gives standardised learned scores `[B]`, where there is a reward model."""
        self.workspace, self.config, self.reference_params, self.reward = workspace, config, reference_params, reward
        self.stream = workspace.stream("heldout", "evaluate", config.part, config.num_parts)
        length = config.max_completion_tokens or workspace.lengths.max_completion_tokens
        self._sample = sampler(workspace, sample.Config(length, config.samples_per_prompt, 1.0), "evaluate")
        self._greedy = sampler(workspace, sample.Config(length, 1, 0.0), "evaluate")
        self._divergence = hosts.compiled(partial(divergence, model=workspace.model))

    def judge(self, params: Params, draw: Any, num_prompts: int) -> Judged:
        """Samples the first `num_prompts` evaluation prompts and judges the samples."""
        batches = []
        for start in range(0, num_prompts, self.config.prompts_per_batch):
            samples = draw(params, self.stream.prompts(start, self.config.prompts_per_batch))
            batches.append((samples, self._divergence(params, self.reference_params, samples)))
        return self._collect(batches)

    def _collect(self, batches: list[tuple[Samples, tuple[Array, Array, Array]]]) -> Judged:
        prompts: list[str] = []
        completions: list[str] = []
        columns: dict[str, list[np.ndarray]] = {}
        for samples, (kl, entropy, nll) in batches:
            values = {"finished": samples.finished_B, "length": samples.mask_BC.sum(-1), "kl": kl, "entropy": entropy}
            values |= {"nll": nll, "prompt_length": samples.prompt_mask_BQ.sum(-1)}
            for name, value in hosts.fetch(hosts.settled(values)).items():
                columns.setdefault(name, []).append(np.asarray(value))
            if self.reward is not None:
                columns.setdefault("reward", []).append(self.reward(samples))
            prompts += self.stream.texts_of(samples)
            completions += self.workspace.completions(samples)
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        return Judged(
            prompts=prompts,
            completions=completions,
            finished_B=joined["finished"],
            length_B=joined["length"],
            gold_B=self.gold(prompts, completions, joined["finished"]),
            reward_B=joined.get("reward"),
            kl_B=joined["kl"],
            entropy_B=joined["entropy"],
            reference_nll_B=joined["nll"],
            prompt_length_B=joined["prompt_length"],
        )

    def gold(self, prompts: Sequence[str], completions: Sequence[str], finished_B: np.ndarray) -> np.ndarray | None:
        """Gold scores `[B]`, or None where nobody judges."""
        if not self.workspace.has_gold:
            return None
        return self.workspace.gold(prompts, completions, finished_B.tolist())

    @cached_property
    def reference_gold(self) -> np.ndarray:
        """Gold scores of the references of every evaluation prompt, `[num_prompts, references_per_prompt]`."""
        count, each = self.config.num_prompts, self.config.references_per_prompt
        prompts, references = self.stream.texts(0, count), self.stream.references(0, count)
        if min(len(of_prompt) for of_prompt in references) < each:
            fewest = min(len(of_prompt) for of_prompt in references)
            raise Refusal(f"evaluate.references_per_prompt is {each}, but a prompt has {fewest} references")
        repeated = [prompt for prompt in prompts for _ in range(each)]
        texts = [text for of_prompt in references for text in of_prompt[:each]]
        return self.workspace.gold(repeated, texts, [True] * len(texts)).reshape(count, each)

    def evaluate(self, params: Params, num_prompts: int) -> tuple[Figures, Judged]:
        """Every figure of the first `num_prompts` evaluation prompts, and the samples at temperature 1."""
        judged = self.judge(params, self._sample, num_prompts)
        greedy = self.judge(params, self._greedy, num_prompts)
        figures = sampled_figures(judged, num_prompts) | {"kl_perplexity": paper_perplexity(greedy)}
        if judged.gold_B is not None and greedy.gold_B is not None:
            reference_gold = self.reference_gold[:num_prompts]
            greedy_rates = win_rates(greedy.gold_B, reference_gold)
            figures |= gold_figures(judged.gold_B, reference_gold)
            figures |= {GREEDY_NAMES[name]: value for name, value in greedy_rates.items()}
            figures["gold_mean_greedy"] = float(greedy.gold_B.mean())
        return figures, judged


def win_rates(gold_B: np.ndarray, reference_gold_PR: np.ndarray) -> Figures:
    """How often a sample beats a reference of its prompt under gold: ties count one half; the strict version beside it."""
    num_prompts = reference_gold_PR.shape[0]
    gold_PG1 = gold_B.reshape(num_prompts, -1, 1)
    better = (gold_PG1 > reference_gold_PR[:, None, :]).mean(axis=(1, 2))
    equal = (gold_PG1 == reference_gold_PR[:, None, :]).mean(axis=(1, 2))
    of_prompt = better + 0.5 * equal
    return {
        "win_rate": float(of_prompt.mean()),
        "win_rate_stderr": float(of_prompt.std(ddof=1) / math.sqrt(num_prompts)),
        "win_rate_strict": float(better.mean()),
    }


def stderr_over_prompts(values_B: np.ndarray, num_prompts: int) -> float:
    """Standard error of a mean over prompts: the samples of one prompt are not independent."""
    return float(values_B.reshape(num_prompts, -1).mean(axis=1).std(ddof=1) / math.sqrt(num_prompts))


def gold_figures(gold_B: np.ndarray, reference_gold_PR: np.ndarray) -> Figures:
    """Gold score and win-rate of fresh samples at temperature 1."""
    return win_rates(gold_B, reference_gold_PR) | {
        "gold_mean": float(gold_B.mean()),
        "gold_mean_stderr": stderr_over_prompts(gold_B, reference_gold_PR.shape[0]),
        "gold_std": float(gold_B.std()),
    }


def sampled_figures(judged: Judged, num_prompts: int) -> Figures:
    """What fresh samples at temperature 1 say without a judge."""
    tokens = float(judged.length_B.sum())
    figures = {
        "kl": float(judged.kl_B.mean()),
        "kl_stderr": stderr_over_prompts(judged.kl_B, num_prompts),
        "kl_per_token": float(judged.kl_B.sum() / tokens),
        "entropy": float(judged.entropy_B.sum() / tokens),
        "completion_length": float(judged.length_B.mean()),
        "finished": float(judged.finished_B.mean()),
        "distinct_completions": len(set(judged.completions)) / len(judged.completions),
    }
    if judged.reward_B is not None:
        figures["reward_mean"] = float(judged.reward_B.mean())
    return figures


def paper_perplexity(greedy: Judged) -> float:
    """exp of a completion's negative log-likelihood under the SFT policy, divided by prompt and completion tokens - 1.

    The mean over rows is the "KL (ppl)" of async RLHF (arXiv 2410.18252) as its code computes it, on near-greedy completions.
    """
    return float(np.exp(greedy.reference_nll_B / (greedy.prompt_length_B + greedy.length_B - 1)).mean())


def learned_scores(reward: ModelReward, params: Params, mean: float, std: float) -> Callable[[Samples], np.ndarray]:
    """Standardised scores of samples, on the host."""
    compiled = hosts.compiled(reward)
    return lambda samples: (np.asarray(hosts.fetch(compiled(params, samples)), np.float64) - mean) / std
