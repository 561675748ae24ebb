"""The chain: sft, comparisons, reward_model, rlhf, best-of-n beside it, report; a stage whose artefact is there is skipped."""

from dataclasses import dataclass

from rlhf_jax.jobs import _evaluator, evaluate, relabel, reward_model, rlhf, sft
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.report.html import write_report
from rlhf_jax.types import Algorithm


@dataclass(frozen=True)
class Stages:
    """The settings of every stage. `reward` is a file of `rewards/`: only learned rewards need comparisons."""

    sft: sft.Config
    comparisons: relabel.Config
    reward_model: reward_model.Config
    rlhf: rlhf.Config
    evaluate: _evaluator.Config
    reward: str = "learned"
    best_of_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: int = 256


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=pipeline`: runs what has not run yet, and writes the report."""
    sft_params = sft.run(workspace, stages.sft)
    if stages.reward == "learned":
        relabel.run(workspace, stages.comparisons, sft_params)
        reward_model.run(workspace, stages.reward_model, sft_params)
    reward = rlhf.make_reward(workspace, stages)
    rlhf.run(workspace, stages, algorithm, reward, sft_params)
    evaluate.best_of_n(workspace, stages, sft_params, reward)
    workspace.metrics.close()
    print(f"report: {write_report(workspace.directory)}")
