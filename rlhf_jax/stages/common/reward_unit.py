"""The unit of a learned reward: mean and deviation of its raw score over samples of the SFT policy."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_jax import sampling
from rlhf_jax.devices import distributed
from rlhf_jax.records.checkpoints import Checkpoints
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.runtime.spec import Reward
from rlhf_jax.stages import comparisons as comparisons_stage
from rlhf_jax.stages.api import Workspace
from rlhf_jax.types import Array, Params, Samples

STAGE = "reward_model"


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of the raw reward over samples of the SFT policy."""

    mean: float
    std: float


def measure_standard(
    workspace: Workspace, params: Params, sft_params: Params, num_prompts: int
) -> Standard:
    """Mean and standard deviation of the raw reward over fresh samples of the SFT policy at
    temperature 1.

    Args:
      workspace: of the run.
      params: of the reward model.
      sft_params: of the policy that samples.
      num_prompts: two samples are drawn of each.
    """
    drawing = sampling.Config(workspace.lengths.max_completion_tokens, 2, 1.0)
    draw = comparisons_stage.sampler(workspace, drawing, "standardize")
    stream = workspace.stream("train", "standardize")
    samples = draw(sft_params, stream.prompts(0, num_prompts))
    given = distributed.fetch(
        distributed.compiled(learned.make(workspace.reward_network))(params, samples)
    )
    texts = list(zip(stream.texts_of(samples), workspace.completions(samples), strict=True))
    raw = host_rewards.numbers("the reward model", given, len(texts), texts.__getitem__)
    if not raw.std() > 0:
        raise Refusal(
            "the reward model gives every SFT sample the same score: it has learned nothing to "
            "standardise"
        )
    return Standard(float(raw.mean()), float(raw.std()))


def standard_path(workspace: Workspace) -> Path:
    return workspace.directory / f"{STAGE}.json"


def owner(workspace: Workspace) -> Workspace:
    """The workspace whose reward model a run has: its own, or that of the run that it begins from,
    where that one has any.
    """
    if workspace.begin is None or distributed.agree(standard_path(workspace).exists()):
        return workspace
    source = owner(workspace.source)
    return source if distributed.agree(standard_path(source).exists()) else workspace


def set_standard_aside(workspace: Workspace, checkpoints: Checkpoints, version: int) -> None:
    """Moves the unit of params that are lost to the checkpoints' `set_aside`, until their version
    is saved again.
    """
    if distributed.is_first():
        place = checkpoints.aside / f"{version}.unit"
        place.mkdir(parents=True, exist_ok=True)
        standard_path(workspace).replace(place / standard_path(workspace).name)
    distributed.barrier()


def read_standard(workspace: Workspace) -> Standard:
    """The unit that a workspace's own stage has measured.

    Raises MissingInput where there is none.
    """
    path = standard_path(workspace)
    if not path.exists():
        raise MissingInput(
            f"{path} is missing: run the stage {STAGE!r} first (--config.job={STAGE})"
        )
    try:
        return Standard(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise Refusal(
            f"{path} is damaged ({error}); remove it to measure the reward model's unit again "
            f"(--config.job={STAGE})"
        ) from None


class LearnedScores:
    """Standardised scores of a reward model: `(raw - mean) / std`, in float64 on the host."""

    def __init__(
        self, model: Callable[[Params, Samples], Array], params: Params, mean: float, std: float
    ):
        self._compiled, self._params = distributed.compiled(model), params
        self._mean, self._std = mean, std

    def raw(self, samples: Samples) -> Array:
        """Raw scores `[B]` on the device; the call does not wait for them."""
        return self._compiled(self._params, samples)

    def standardised(self, raw_B: Array) -> np.ndarray:
        """Standardised scores `[B]` of raw ones, once they are there."""
        return (np.asarray(distributed.fetch(raw_B), np.float64) - self._mean) / self._std


def learned_scores(reward: Reward) -> LearnedScores | None:
    """Scores of a run's reward model; None where no model gives the reward."""
    if reward.model is None:
        return None
    assert reward.params is not None
    return LearnedScores(reward.model, reward.params, reward.mean, reward.std)
