"""Evaluation on held-out prompts: gold score, win-rate against references, KL to the reference, and
diversity.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.head import split_head
from rlhf_jax.models.common.layout import current
from rlhf_jax.ops.divergences import full_kl
from rlhf_jax.ops.once import bound
from rlhf_jax.ops.row_shards import scan_chunks
from rlhf_jax.prompt_buckets import sorted_batches
from rlhf_jax.records.samples import Sample
from rlhf_jax.refusal import Refusal
from rlhf_jax.scoring import MAX_LOGITS, completion_hidden
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common.evaluation_metrics import (
    Figures,
    Judged,
    gold_figures,
    gold_of_references,
    paper_perplexity,
    sampled_figures,
    win_rates,
)
from rlhf_jax.stages.common.reward_unit import LearnedScores
from rlhf_jax.stages.comparisons import sampler
from rlhf_jax.stages.settings.stages import EvaluateConfig as Config
from rlhf_jax.types import Array, Params, Prompts, Samples

KEPT_PROMPTS = 24
GREEDY_NAMES = {
    "win_rate": "win_rate_greedy",
    "win_rate_stderr": "win_rate_greedy_stderr",
    "win_rate_strict": "win_rate_strict_greedy",
}


def fitted(config: Config, num_heldout: int) -> tuple[Config, str]:
    """Returns the config with at most as many prompts as there are, and a sentence that says so (""
    where all fit).

    Args:
      config: as given.
      num_heldout: distinct prompts of the held-out split.

    Raises Refusal for a part without any prompt.
    """
    available = num_heldout // config.num_parts
    if not available:
        raise Refusal(
            f"evaluate.num_parts is {config.num_parts}, but the task has {num_heldout} held-out "
            "prompts; accepted: a task "
            "with at least one held-out prompt for each part"
        )
    if max(config.num_prompts, config.num_prompts_between) <= available:
        return config, ""
    capped = replace(
        config,
        num_prompts=min(config.num_prompts, available),
        num_prompts_between=min(config.num_prompts_between, available),
    )
    part = f" in each of {config.num_parts} parts" if config.num_parts > 1 else ""
    return capped, (
        f"evaluations take all {available} held-out prompts{part}: evaluate.num_prompts is "
        f"{config.num_prompts} and "
        f"evaluate.num_prompts_between {config.num_prompts_between}"
    )


def divergence(
    params: Params, reference_params: Params, samples: Samples, *, model: Model
) -> tuple[Array, Array, Array]:
    """Per row, summed over the completion's tokens, at temperature 1 and in nats: full-vocabulary
    KL to the reference, entropy, and the reference's negative log-likelihood. `[B]` each; a device
    holds at most `MAX_LOGITS` logits of each model at once.
    """
    rows = (samples.prompt_tokens_BQ, samples.prompt_mask_BQ, samples.tokens_BC, samples.mask_BC)
    hidden = completion_hidden(params, *rows, model)
    reference_hidden = completion_hidden(reference_params, *rows, model)
    num_rows, length, width = hidden.shape
    total = num_rows * length
    inputs = (
        hidden.reshape(total, width),
        reference_hidden.reshape(total, width),
        samples.tokens_BC.reshape(total),
    )
    outputs = _divergences(params, reference_params, inputs, model)

    def per_row(values: Array) -> Array:
        return jnp.where(samples.mask_BC, values.reshape(num_rows, length), 0.0).sum(axis=-1)

    return per_row(outputs[0]), per_row(outputs[1]), per_row(outputs[2])


def _divergences(
    params: Params, reference_params: Params, inputs: tuple[Array, Array, Array], model: Model
) -> tuple[Array, Array, Array]:
    """The three figures of every position, `[N]` each, in chunks: see `divergence`."""

    def chunk(
        heads: tuple[Callable[[Array], Array], Callable[[Array], Array]],
        inputs: tuple[Array, Array, Array],
    ) -> tuple[Array, Array, Array]:
        hidden_ND, reference_ND, tokens_N = inputs
        logits, reference_logits = heads[0](hidden_ND), heads[1](reference_ND)
        logprob, reference_logprob = (
            jax.nn.log_softmax(logits),
            jax.nn.log_softmax(reference_logits),
        )
        entropy_N = -(jnp.exp(logprob) * logprob).sum(axis=-1)
        chosen_N = jnp.take_along_axis(reference_logprob, tokens_N[:, None], axis=-1)[:, 0]
        return full_kl(logits, reference_logits), entropy_N, -chosen_N

    layout, total = current(), inputs[0].shape[0]
    size = max(1, min(total, MAX_LOGITS // model.vocab_size))
    if layout is None:
        padding = -total % size
        heads = partial(model.head, params), partial(model.head, reference_params)
        padded = [jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1))) for x in inputs]
        chunks = tuple(x.reshape(-1, size, *x.shape[1:]) for x in padded)
        outputs = jax.lax.map(partial(chunk, heads), chunks)
        return jax.tree.map(lambda values: values.reshape(-1)[:total], outputs)
    head = split_head(model, params, inputs[0], layout)
    reference = split_head(model, reference_params, inputs[0], layout)

    def local(
        whole: tuple[list[Array], list[Array]], rows: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        heads = partial(head.function, whole[0]), partial(reference.function, whole[1])
        return scan_chunks(lambda rows: ((), chunk(heads, rows)), rows, size)[1]

    return layout.shards.run(local, (head.whole(layout), reference.whole(layout)), inputs)


@dataclass(frozen=True)
class Drawn:
    """One batch of samples, and what the devices compute of them while the host goes on."""

    samples: Samples
    num_prompts: int  # that are evaluated; those after them fill the batch
    divergence: tuple[Array, Array, Array]
    raw_reward: Array | None


class Evaluator:
    """Compiles once; evaluates any params of the run's model."""

    def __init__(
        self,
        workspace: Workspace,
        config: Config,
        reference_params: Params,
        reward: LearnedScores | None = None,
    ):
        """`reward` scores samples, where there is a reward model."""
        self.workspace, self.reward = workspace, reward
        self.reference_params = workspace.held(reference_params)
        self.config = config = fitted(config, workspace.task.num_prompts("heldout"))[0]
        self.stream = workspace.stream("heldout", "evaluate", config.part, config.num_parts)
        self.length = config.max_completion_tokens or workspace.lengths.max_completion_tokens
        # One program for both: each sampling program is a second or more to compile.
        drawing = sampling.Config(self.length, config.samples_per_prompt + 1, 1.0, num_greedy=1)
        self._sample = sampler(workspace, drawing, "evaluate")
        self._divergence = distributed.compiled(
            sharding.keeping_rows(bound(divergence, model=workspace.model), workspace.mesh)
        )

    def batches(self, num_prompts: int, prompts_per_batch: int) -> Iterator[tuple[Prompts, int]]:
        """The first `num_prompts` evaluation prompts in batches of one size, and how many prompts
        of each count.

        Args:
          num_prompts: in all.
          prompts_per_batch: at most.

        The last batch is filled with the prompts that follow in the stream: one compiled shape
        serves all, and a mesh divides it. The size is `prompts_per_batch`, or the fewest prompts
        that the mesh divides where there are not as many.
        """
        size = self._batch_size(num_prompts, prompts_per_batch)
        for start in range(0, num_prompts, size):
            yield self.stream.prompts(start, size), min(size, num_prompts - start)

    def _batch_size(self, num_prompts: int, prompts_per_batch: int) -> int:
        shards = self.workspace.mesh.shape["data"] * self.workspace.mesh.shape["fsdp"]
        most = max(self.config.num_prompts, num_prompts)
        return -(-min(prompts_per_batch, most) // shards) * shards

    def _by_length(self, num_prompts: int) -> Iterable[tuple[Prompts, int]]:
        """The batches of an evaluation. With several buckets of prompts' lengths a batch has prompts
        of similar lengths, in the width of its bucket; `judge` puts them in their order again.
        """
        lengths, most = self.workspace.lengths, self.config.prompts_per_batch
        if lengths.prompt_buckets == 1:
            return self.batches(num_prompts, most)
        prompts, size = self.stream.prompts(0, num_prompts), self._batch_size(num_prompts, most)
        return sorted_batches(prompts, size, lengths.prompt_buckets)

    def draw(
        self,
        params: Params,
        sample: Callable[[Params, Prompts], Samples],
        num_prompts: int,
        reward: LearnedScores | None = None,
    ) -> list[Drawn]:
        """Has the devices sample the first `num_prompts` evaluation prompts, and does not wait.

        Args:
          params: of the policy.
          sample: samples prompts with them.
          num_prompts: that are evaluated.
          reward: scores the samples; None: they have no reward.
        """
        drawn, params = [], self.workspace.held(params)  # one program for every policy
        for prompts, count in self._by_length(num_prompts):
            samples = sample(params, prompts)
            divergence = self._divergence(params, self.reference_params, samples)
            raw_reward = None if reward is None else reward.raw(samples)
            drawn.append(Drawn(samples, count, divergence, raw_reward))
        return drawn

    def judge(self, drawn: Sequence[Drawn]) -> Judged:
        """Fetches drawn samples and judges them on the host."""
        completions: list[str] = []
        columns: dict[str, list[np.ndarray]] = {}
        for batch in drawn:
            samples, (kl, entropy, nll) = batch.samples, batch.divergence
            rows = batch.num_prompts * samples.samples_per_prompt
            values = {
                "finished": samples.finished_B,
                "length": samples.mask_BC.sum(-1),
                "kl": kl,
                "entropy": entropy,
            }
            lengths_B = samples.prompt_mask_BQ.sum(-1)
            values |= {"nll": nll, "prompt_length": lengths_B, "ordinal": samples.ordinal_B}
            for name, value in distributed.fetch(distributed.settled(values)).items():
                columns.setdefault(name, []).append(np.asarray(value)[:rows])
            if self.reward is not None and batch.raw_reward is not None:
                scores = self.reward.standardised(batch.raw_reward)
                columns.setdefault("reward", []).append(scores[:rows])
            completions += self.workspace.completions(samples)[:rows]
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        order_B = np.argsort(joined["ordinal"], kind="stable")  # of the prompts' stream
        joined = {name: column[order_B] for name, column in joined.items()}
        completions = [completions[row] for row in order_B]
        texts = self.stream.texts(0, int(joined["ordinal"].max()) + 1)
        prompts = [texts[ordinal] for ordinal in joined["ordinal"]]
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

    def gold(
        self, prompts: Sequence[str], completions: Sequence[str], finished_B: np.ndarray
    ) -> np.ndarray | None:
        """Gold scores `[B]`, or None where nobody judges.

        Args:
          prompts: B texts.
          completions: B texts.
          finished_B: True where an EOS was sampled.
        """
        if not self.workspace.has_gold:
            return None
        return self.workspace.gold(prompts, completions, finished_B.tolist())

    @cached_property
    def reference_gold(self) -> np.ndarray:
        """Gold scores of what every evaluation prompt's samples are compared with, `[num_prompts,
        references_per_prompt]`: see `Config.compare_with`.

        NaN in the place of references that a prompt does not have.
        """
        count, most = self.config.num_prompts, self.config.references_per_prompt
        if self.config.compare_with == "sft_policy":
            return self._sft_gold(count, most)
        prompts = self.stream.texts(0, count)
        references = [texts[:most] for texts in self.stream.references(0, count)]
        return gold_of_references(self.workspace.gold, prompts, references)

    def _sft_gold(self, count: int, most: int) -> np.ndarray:
        """Gold scores of `most` completions of the SFT policy for each of `count` prompts. Their
        random key is not that of the samples which are evaluated.
        """
        drawing = sampling.Config(self.length, most, 1.0)
        draw = sampler(self.workspace, drawing, "evaluate_references")
        judged = self.judge(self.draw(self.reference_params, draw, count))
        assert judged.gold_B is not None
        return judged.gold_B.reshape(count, most)

    def evaluate(self, params: Params, num_prompts: int) -> tuple[Figures, Judged]:
        """Every figure of the first `num_prompts` evaluation prompts, and the samples at
        temperature 1.

        Args:
          params: of the policy.
          num_prompts: at most; see `fitted`.
        """
        num_prompts = min(num_prompts, self.config.num_prompts)
        both = self.judge(self.draw(params, self._sample, num_prompts, self.reward))
        each = self.config.samples_per_prompt + 1
        is_greedy_B = np.arange(len(both.prompts)) % each == each - 1
        judged, greedy = both.rows(~is_greedy_B), both.rows(is_greedy_B)
        figures = sampled_figures(judged) | {"kl_perplexity": paper_perplexity(greedy)}
        if judged.gold_B is not None and greedy.gold_B is not None:
            reference_gold = self.reference_gold[:num_prompts]
            figures |= gold_figures(judged.prompts, judged.gold_B, reference_gold)
            greedy_rates = win_rates(greedy.prompts, greedy.gold_B, reference_gold)
            figures |= {GREEDY_NAMES[name]: value for name, value in greedy_rates.items()}
            figures["gold_mean_greedy"] = float(greedy.gold_B.mean())
        return figures, judged


def kept(judged: Judged, config: Config) -> list[Sample]:
    """The first completion of some evaluation prompts, the same ones for every version.

    Args:
      judged: of an evaluation.
      config: of it.
    """
    each = config.samples_per_prompt
    rows = range(0, min(len(judged.prompts), KEPT_PROMPTS * each), each)
    return [
        Sample(
            ordinal=row // each,
            prompt=judged.prompts[row],
            completion=judged.completions[row],
            finished=bool(judged.finished_B[row]),
            gold=None if judged.gold_B is None else float(judged.gold_B[row]),
            reward=None if judged.reward_B is None else float(judged.reward_B[row]),
        )
        for row in rows
    ]
