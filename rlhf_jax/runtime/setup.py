"""What a program is made of: models, algorithm, reward, clock, mesh, and where prompts and random keys come from."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import optax
from jax.sharding import Mesh

from rlhf_jax import sample, score
from rlhf_jax.models.api import Model
from rlhf_jax.models.value_head import ValueModel
from rlhf_jax.rewards.api import ModelReward
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.clock import Clock
from rlhf_jax.runtime.placement import Places
from rlhf_jax.types import Algorithm, Array, Params, Plan, Prompts, Samples


@dataclass(frozen=True)
class Reward:
    """What judges, and its unit: `model` with its `params`, or `host` on decoded samples; standardised by mean and std.

    `network` says how params are sharded where a plan gives the reward devices of its own; without it they lie whole on each.
    """

    model: ModelReward | None = None
    params: Params = None
    network: ValueModel | None = None
    host: Callable[[Samples], np.ndarray] | None = None
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Critic:
    """The second trained role of an algorithm with `losses["critic"]`: where it begins, and how it learns."""

    model: ValueModel
    params: Params
    optimizer: optax.GradientTransformation


@dataclass(frozen=True)
class Setup:
    """What a program is made of. `prompts(round)` gives the round's prompts; keys are functions of `seed` and purpose.

    Calls run where `plan` places them, and on `mesh` where it does not name them.
    """

    model: Model
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    sampling: sample.Config
    scoring: score.Config
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
    sampler_slices: tuple[
        Mesh, ...
    ] = ()  # device slices that share a round's prompts; none: it samples where the plan says
    plan: Plan = field(default_factory=Plan)

    @property
    def networks(self) -> dict[str, Model | ValueModel | None]:
        """The network of each role; None of a role that this run does not have as a model."""
        critic = None if self.critic is None else self.critic.model
        return {"policy": self.model, "reference": self.model, "reward": self.reward.network, "critic": critic}

    @property
    def places(self) -> Places:
        """Where each call runs."""
        return Places(self.mesh, hosts.grid(), self.plan, self.num_micro_batches)
