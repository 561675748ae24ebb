"""The chain: sft, comparisons, reward_model, prompt_values where the algorithm needs them, rlhf,
best-of-n beside it, report; a stage whose artefact is there is skipped.
"""

from rlhf_jax.algorithms.api import REFERENCE_SCORES
from rlhf_jax.devices import distributed
from rlhf_jax.report.html import write_report
from rlhf_jax.runtime.program import Reward
from rlhf_jax.stages import comparisons as comparisons_stage
from rlhf_jax.stages import evaluate, prompt_values, reward_model, rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Params


def before_rlhf(workspace: Workspace, stages: Stages) -> tuple[Params, Reward]:
    """The SFT policy's params and the reward, trained where they are not there yet; both as they are
    held where no update changes them.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
    """
    sft_params = workspace.held(sft.run(workspace, stages.sft))
    if stages.learned:
        if reward_model.needs_comparisons(workspace):
            comparisons_stage.run(workspace, stages.comparisons, sft_params)
        reward_model.run(workspace, stages.reward_model, sft_params)
    return sft_params, rlhf.make_reward(workspace, stages)


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=pipeline`: runs what has not run yet, and writes the report."""
    sft_params, reward = before_rlhf(workspace, stages)
    if REFERENCE_SCORES in algorithm.needs:
        prompt_values.run(workspace, stages, sft_params, reward)
    rlhf.run(workspace, stages, algorithm, reward, sft_params)
    evaluate.best_of_n(workspace, stages, sft_params, reward)
    workspace.metrics.close()
    if distributed.is_first():
        print(f"report: {write_report(workspace.directory)}")
