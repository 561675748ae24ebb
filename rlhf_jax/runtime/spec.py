"""The specification of a program: models, algorithm, reward, clock, mesh, prompts and random keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rlhf_jax.clock import Clock
from rlhf_jax.dataflow import STORED, Call, calls_of
from rlhf_jax.devices import distributed
from rlhf_jax.devices.placement import ResolvedPlan
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.policy_gradient.consecutive_gradients import remembering
from rlhf_jax.ops.policy_gradient.learning_rate_scale import LearningRateScale
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import LEARNED, ModelReward, Term
from rlhf_jax.sampling import Config as SamplingConfig
from rlhf_jax.scoring import Config as ScoringConfig
from rlhf_jax.types import Algorithm, Array, Params, Plan, Prompts, Samples

Published = Params | tuple[Params, ...]  # the sampler's copy, or one for each mesh that samples


@dataclass(frozen=True)
class Reward:
    """The reward of samples, and its unit: `model` with its `params`, or `host` on decoded samples.

    The scores are standardised by mean and std. A sum of rewards has `terms`. `host` then gives the
    scores of the terms on text, by their labels. `model` is the term named `learned`, and mean and
    std are the model's. `network` gives the shardings of params where a plan gives the reward its
    own devices; without it params are replicated.
    """

    model: ModelReward | None = None
    params: Params | None = None
    network: ValueModel | None = None
    # Returns one number per sample; of a sum, {label: one number per sample}.
    host: Callable[[Samples], Any] | None = None
    mean: float = 0.0
    std: float = 1.0
    name: str = "reward"  # in messages
    terms: tuple[Term, ...] = ()
    # Reads the params again in float32, where `params` are held in the dtype of products: a critic
    # begins with them.
    read: Callable[[], Params] | None = None

    @property
    def model_label(self) -> str:
        """The label of the term that the model scores."""
        return next(term.label for term in self.terms if term.name == LEARNED)

    @property
    def units(self) -> dict[str, tuple[float, float, float]]:
        """(weight, mean, standard deviation) of each term, by label; a term on text is used in its
        own unit.
        """
        model_unit = (self.mean, self.std)
        return {
            term.label: (term.weight, *(model_unit if term.name == LEARNED else (0.0, 1.0)))
            for term in self.terms
        }


@dataclass(frozen=True)
class Critic:
    """The second trained role of an algorithm with `losses["critic"]`: its model, its params at
    version 0 (or their shapes, where `Program.init` is given them), and its optimizer.
    """

    model: ValueModel
    params: Params
    optimizer: optax.GradientTransformation


@dataclass(frozen=True)
class FrozenRole:
    """A role whose params no update changes, for an added score.

    `model` is passed to the score's function. `network` gives the shardings of params; without it
    they are replicated.
    """

    model: Any  # as the score's function takes it
    params: Params
    network: Model | ValueModel | None = None


@dataclass(frozen=True)
class ProgramSpec:
    """The specification of a program. `prompts(round)` gives the round's prompts; keys are
    functions of `seed` and purpose.

    Calls that `plan` names run on its devices, and the others on `mesh`.
    """

    model: Model
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    sampling: SamplingConfig
    scoring: ScoringConfig
    reward: Reward
    clock: Clock
    mesh: Mesh
    prompts: Callable[[int], Prompts]
    key: Array
    seed: int
    eos_id: int | tuple[int, ...]  # that ends a row, one or several
    pad_id: int
    publish_dtype: str = "float32"
    num_micro_batches: int = 1
    critic: Critic | None = None
    share_prompts: bool = True
    # Device slices that share a round's prompts; none: the sampler's mesh is the plan's.
    sampler_slices: tuple[Mesh, ...] = ()
    plan: Plan = field(default_factory=Plan)
    # (prompt, completion) of samples, for messages.
    texts: Callable[[Samples], list[tuple[str, str]]] | None = None
    # Roles of scores beside reference and reward.
    frozen: Mapping[str, FrozenRole] = field(default_factory=dict)
    # Of an algorithm that needs `dataflow.STORED`: float32 [T, S], by the ordinals 0 ... T - 1 of
    # the prompts. Its shape is enough to compile, and not to score.
    reference_scores: np.ndarray | jax.ShapeDtypeStruct | None = None
    # The adapters of trained roles, whose params have them; none: all params are trained.
    lora: adapters.Config = field(default_factory=adapters.Config)
    # κ: `prompts` gives κP prompts of a round, of which P are kept; see `rlhf_jax/clock/live.py`
    oversample: int = 1
    # Widths in which prompts are scored; see `rlhf_jax/prompt_buckets.py`.
    prompt_buckets: int = 1
    # Of the policy's updates.
    learning_rate_scale: LearningRateScale = field(default_factory=LearningRateScale)
    # The policy's state keeps the last gradient, and an update has the metric `gradient_cosine`.
    gradient_cosine: bool = False

    @property
    def composes(self) -> bool:
        """True where a round is trained on chosen groups, and not on all that it sampled."""
        return self.clock.composes or self.oversample > 1

    @property
    def stored(self) -> dict[str, np.ndarray | jax.ShapeDtypeStruct]:
        """The stored scores that the algorithm needs, by their entry of `Scores.extra`.

        Raises:
          Refusal: they are not given.
        """
        wanted = [output for need, output in STORED.items() if need in self.algorithm.needs]
        if wanted and self.reference_scores is None:
            raise Refusal(
                f"{self.algorithm.name} needs stored scores of the reference policy's samples, and "
                "none are given; accepted: those of the stage 'prompt_values' "
                "(--config.job=prompt_values)"
            )
        return dict.fromkeys(wanted, self.reference_scores)  # type: ignore[arg-type]

    @property
    def calls(self) -> tuple[Call, ...]:
        """The dataflow of a round."""
        return calls_of(self.algorithm, self.reward.model is not None)

    @property
    def networks(self) -> dict[str, Model | ValueModel | None]:
        """The network of each role; None of a role that this run does not have as a model."""
        critic = None if self.critic is None else self.critic.model
        networks = {
            "policy": self.model,
            "reference": self.model,
            "reward": self.reward.network,
            "critic": critic,
        }
        return networks | {role: frozen.network for role, frozen in self.frozen.items()}

    def model_of(self, call: Call) -> Any:
        """Returns the model that a call runs, with the config of its placement.

        Raises:
          Refusal: this run has no model of the call's role.
        """
        models: dict[str, Any] = self.networks | {"reward": self.reward.model}
        models |= {role: frozen.model for role, frozen in self.frozen.items()}
        model = models.get(call.role)
        if model is None:
            raise Refusal(
                f"{call.name} needs a model of the role {call.role}; this run has {_names(models)}"
            )
        changes = self.resolved_plan.changes(call.name)
        return model.with_config(**changes) if changes and hasattr(model, "with_config") else model

    @property
    def trained(self) -> dict[str, tuple[Model | ValueModel, optax.GradientTransformation]]:
        """The network and the optimizer of each trained role."""
        critic = (
            {} if self.critic is None else {"critic": (self.critic.model, self.critic.optimizer)}
        )
        optimizer = remembering(self.optimizer) if self.gradient_cosine else self.optimizer
        return {"policy": (self.model, optimizer), **critic}

    @property
    def block_rows(self) -> int:
        """Rows that stay together: all of a prompt's, so that the prompt is run once, or else the
        algorithm's unit.
        """
        return block_rows(self.algorithm, self.sampling.samples_per_prompt, self.share_prompts)

    @cached_property
    def resolved_plan(self) -> ResolvedPlan:
        """The placement of each call."""
        return ResolvedPlan(
            self.mesh, distributed.devices_by_host(), self.plan, self.num_micro_batches
        )


def block_rows(algorithm: Algorithm, samples_per_prompt: int, share_prompts: bool) -> int:
    """Rows of a minibatch that are never separated; see `ProgramSpec.block_rows`.

    Args:
      algorithm: has the rows of its unit, and those of a prompt.
      samples_per_prompt: that are drawn.
      share_prompts: True where a prompt is run once for all of its rows.
    """
    if share_prompts:
        return algorithm.rows_per_prompt(samples_per_prompt)
    return algorithm.unit_rows(samples_per_prompt)


def _names(models: Mapping[str, Any]) -> str:
    return ", ".join(role for role, model in models.items() if model is not None)
