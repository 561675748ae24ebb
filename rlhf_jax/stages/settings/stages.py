"""Settings of every stage but RLHF, which has a module of its own, and of all stages of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Annotated, Any, Literal

from rlhf_jax.config import LARGEST, Bounds, Count, Fraction, Natural, Positive
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.terms import parse
from rlhf_jax.stages.settings.rlhf import Config as RLHFConfig
from rlhf_jax.updating import OptimizerConfig


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on prompt and reference; the loss is on the completion's tokens, the
    EOS included.
    """

    num_updates: Count = 300  # steps of the optimizer
    rows_per_update: Count = 64  # pairs of a prompt and a reference
    # parts of a batch whose gradients are added: less memory; 0: the fastest that fit
    num_micro_batches: Natural = 1
    checkpoint_every: Natural = 100  # updates; 0: only at the end
    min_whole_references: Fraction = (
        0.05  # share that must keep their EOS within lengths.max_completion_tokens
    )
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-3, schedule="cosine")
    )


@dataclass(frozen=True)
class ComparisonsConfig:
    """The number of pairs to sample. A sampled pair that gold scores alike is left out, being no
    comparison. Given pairs are all taken.
    """

    num_train: Count = 4096  # pairs to train the reward model on
    num_heldout: Count = 512  # pairs on held-out prompts, for its accuracy
    prompts_per_batch: Count = 256  # sampled at once
    temperature: Positive = 1.0  # of the two samples of a pair
    by_gold: bool = (
        True  # of given pairs: the gold reward model, where there is one, says which was chosen
    )


@dataclass(frozen=True)
class RewardModelConfig:
    """Pairwise logistic loss (Ouyang et al., 2022, arXiv 2203.02155, equation 1), one pass or more
    over the comparisons.
    """

    num_updates: Count = 300  # steps of the optimizer
    pairs_per_update: Count = 32  # comparisons of a batch
    # parts of a batch whose gradients are added: less memory; 0: the fastest that fit
    num_micro_batches: Natural = 1
    checkpoint_every: Natural = 100  # updates; 0: only at the end
    # scores are in deviations of the SFT policy's; else as they are, as the papers' numbers are
    standardize: bool = True
    # prompts whose SFT samples give mean and deviation of the score
    standardize_prompts: Count = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, schedule="cosine")
    )


@dataclass(frozen=True)
class DPOConfig:
    """Offline DPO (Rafailov et al., 2023, arXiv 2305.18290) or IPO (Azar et al., 2023, arXiv
    2310.12036) on comparisons, one pass or more over them. Defaults are of the DPO paper, its
    appendix B, unless a source is named.
    """

    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"  # DPO's, or IPO's; named as TRL names them
    beta: Positive = 0.1  # τ in IPO's paper
    # ε of conservative DPO (Mitchell, 2023): the share of labels taken to be wrong; 0: plain DPO
    label_smoothing: Annotated[float, Bounds(least=0, below=0.5)] = 0.0
    num_updates: Count = 300
    pairs_per_update: Count = 64
    num_micro_batches: Natural = 1  # parts of a batch; 0: the fastest that fit
    checkpoint_every: Natural = 100  # updates; 0: only at the end
    evaluate_every: Natural = 100  # updates; the first and the last version are always evaluated
    optimizer: OptimizerConfig = field(
        # as TRL, which has no warm-up; the paper warms up over 150 updates
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="linear")
    )

    def __post_init__(self) -> None:
        if self.loss_type == "ipo" and self.label_smoothing:
            raise Refusal(
                f"dpo.label_smoothing is {self.label_smoothing} and dpo.loss_type is 'ipo', which "
                "has no smoothing; accepted: dpo.label_smoothing=0.0, or dpo.loss_type=sigmoid"
            )


@dataclass(frozen=True)
class EvaluateConfig:
    """Fresh samples at temperature 1, and greedy ones, on the first prompts of the held-out stream.

    No prompt is evaluated twice: `fitted` lowers the numbers of prompts to what the split has.
    """

    num_prompts: Count = 1024  # of the first and the last evaluation of a run
    num_prompts_between: Count = 256  # of those between
    samples_per_prompt: Count = 4  # at temperature 1; one more is greedy
    references_per_prompt: Count = 4  # at most; a prompt with fewer is compared with those it has
    # what win-rates compare with: the task's references, or as many completions of the SFT policy,
    # drawn at temperature 1 (where pretrained.sft stands for SFT: of the published model)
    compare_with: Literal["references", "sft_policy"] = "references"
    prompts_per_batch: Count = 256  # sampled at once
    max_completion_tokens: Annotated[int, Bounds(least=2, most=LARGEST, also=(0,))] = (
        0  # 0: as in training
    )
    # Of num_parts into which held-out prompts are dealt: a study chooses on one and reports on
    # another.
    part: Natural = 0
    num_parts: Count = 1  # see part

    def __post_init__(self) -> None:
        if not 0 <= self.part < self.num_parts:
            raise Refusal(
                f"evaluate.part is {self.part}; accepted: 0 to evaluate.num_parts - 1 = "
                f"{self.num_parts - 1}"
            )


@dataclass(frozen=True)
class Stages:
    """The settings of every stage. `reward` names one reward, or a sum of several (see
    `rewards/api.py`); only a learned one needs comparisons. `reward_settings` are those of the
    rewards on text, by their labels.
    """

    sft: SFTConfig
    comparisons: ComparisonsConfig
    reward_model: RewardModelConfig
    rlhf: RLHFConfig
    evaluate: EvaluateConfig
    dpo: DPOConfig | None = None  # None: the config has no such node
    reward: str = LEARNED
    reward_settings: Mapping[str, Any] = field(default_factory=dict)
    # where the calls of the RLHF stage run: see `devices/placement.py`; "": all on the run's mesh;
    # fit: there too, cut so that they fit in memory; search: the fastest plan that is found
    plan: str = ""
    best_of_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: int = 256
    taken: frozenset[str] = (
        frozenset()
    )  # the stages whose results another run has: see `beginning.py`

    def with_rates(self, factor: float) -> "Stages":
        """These settings with the learning rate of every optimizer times `factor`."""

        changed = {}
        for name, settings in vars(self).items():
            if not is_dataclass(settings) or isinstance(settings, type):
                continue
            optimizers = {
                key: replace(value, learning_rate=factor * value.learning_rate)
                for key, value in vars(settings).items()
                if isinstance(value, OptimizerConfig)
            }
            changed[name] = replace(settings, **optimizers)
        return replace(self, **changed)

    @property
    def learned(self) -> bool:
        """True where a reward model is the reward, or a term of it."""
        return any(term.name == LEARNED for term in parse(self.reward))
