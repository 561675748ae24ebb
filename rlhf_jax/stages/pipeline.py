"""The chain: sft, comparisons, reward_model, rlhf, best-of-n beside it, report; a stage whose
artefact is there is skipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.devices import distributed
from rlhf_jax.report.html import write_report
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.terms import parse
from rlhf_jax.runtime.program import Reward
from rlhf_jax.stages import comparisons as comparisons_stage
from rlhf_jax.stages import evaluate, reward_model, rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common import evaluator
from rlhf_jax.types import Algorithm, Params


@dataclass(frozen=True)
class Stages:
    """The settings of every stage. `reward` names one reward, or a sum of several (see
    `rewards/api.py`); only a learned one needs comparisons. `reward_settings` are those of the
    rewards on text, by their labels.
    """

    sft: sft.Config
    comparisons: comparisons_stage.Config
    reward_model: reward_model.Config
    rlhf: rlhf.Config
    evaluate: evaluator.Config
    reward: str = LEARNED
    reward_settings: Mapping[str, Any] = field(default_factory=dict)
    # where the calls of the RLHF stage run: see `devices/placement.py`; "": all on the run's mesh
    plan: str = ""
    best_of_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: int = 256
    taken: frozenset[str] = (
        frozenset()
    )  # the stages whose results another run has: see `beginning.py`

    @property
    def learned(self) -> bool:
        """True where a reward model is the reward, or a term of it."""
        return any(term.name == LEARNED for term in parse(self.reward))


def before_rlhf(workspace: Workspace, stages: Stages) -> tuple[Params, Reward]:
    """The SFT policy's params and the reward, trained where they are not there yet."""
    sft_params = sft.run(workspace, stages.sft)
    if stages.learned:
        if reward_model.needs_comparisons(workspace):
            comparisons_stage.run(workspace, stages.comparisons, sft_params)
        reward_model.run(workspace, stages.reward_model, sft_params)
    return sft_params, rlhf.make_reward(workspace, stages)


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=pipeline`: runs what has not run yet, and writes the report."""
    sft_params, reward = before_rlhf(workspace, stages)
    rlhf.run(workspace, stages, algorithm, reward, sft_params)
    evaluate.best_of_n(workspace, stages, sft_params, reward)
    workspace.metrics.close()
    if distributed.is_first():
        print(f"report: {write_report(workspace.directory)}")
