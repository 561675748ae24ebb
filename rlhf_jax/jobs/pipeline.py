"""The chain: sft, comparisons, reward_model, rlhf, best-of-n beside it, report; a stage whose artefact is there is skipped."""

from dataclasses import dataclass

from jax.sharding import Mesh

from rlhf_jax.jobs import _evaluator, evaluate, relabel, reward_model, rlhf, sft
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.refusal import Refusal
from rlhf_jax.report.html import write_report
from rlhf_jax.runtime import hosts
from rlhf_jax.runtime.mesh import check_rows
from rlhf_jax.runtime.program import Reward
from rlhf_jax.types import Algorithm, Params
from rlhf_jax.update import learning_rate_schedule


@dataclass(frozen=True)
class Stages:
    """The settings of every stage. `reward` is a file of `rewards/`: only learned rewards need comparisons."""

    sft: sft.Config
    comparisons: relabel.Config
    reward_model: reward_model.Config
    rlhf: rlhf.Config
    evaluate: _evaluator.Config
    reward: str = "learned"
    plan: str = ""  # where the calls of the RLHF stage run: see `runtime/placement.py`; "": all on the run's mesh
    best_of_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: int = 256

    def __post_init__(self) -> None:
        if self.best_of_n_prompts > self.evaluate.num_prompts:
            raise Refusal(
                f"best_of_n_prompts is {self.best_of_n_prompts}; accepted: at most evaluate.num_prompts = "
                f"{self.evaluate.num_prompts}"
            )


def check(stages: Stages, algorithm: Algorithm, mesh: Mesh) -> None:
    """Raises Refusal, naming the value, for what cannot run in any stage, before anything is compiled or written."""
    rlhf.check(stages.rlhf, algorithm, mesh, stages.plan)
    check_rows("sft.rows_per_update", stages.sft.rows_per_update, mesh, stages.sft.num_micro_batches)
    check_rows("comparisons.prompts_per_batch", stages.comparisons.prompts_per_batch, mesh)
    pairs = stages.reward_model
    check_rows("reward_model.pairs_per_update", pairs.pairs_per_update, mesh, pairs.num_micro_batches)
    check_rows("evaluate.prompts_per_batch", stages.evaluate.prompts_per_batch, mesh)
    optimizers = {f"{name}.": getattr(stages, name).optimizer for name in ("sft", "reward_model", "rlhf")}
    for prefix, optimizer in (optimizers | {"rlhf.critic_": stages.rlhf.critic_optimizer}).items():
        try:
            learning_rate_schedule(optimizer, 1)
        except ValueError as error:
            raise Refusal(f"{prefix}{error}") from error
    sizes = stages.best_of_n
    if any(n < 1 or max(sizes) % n for n in sizes):
        raise Refusal(f"best_of_n is {sizes}; accepted: positive sizes that divide the largest")
    if stages.best_of_n_prompts > stages.evaluate.num_prompts:
        raise Refusal(
            f"best_of_n_prompts is {stages.best_of_n_prompts}; accepted: at most evaluate.num_prompts = "
            f"{stages.evaluate.num_prompts}"
        )


def before_rlhf(workspace: Workspace, stages: Stages) -> tuple[Params, Reward]:
    """The SFT policy's params and the reward, trained where they are not there yet."""
    sft_params = sft.run(workspace, stages.sft)
    if stages.reward == "learned":
        if not workspace.hub.reward_model:
            relabel.run(workspace, stages.comparisons, sft_params)
        reward_model.run(workspace, stages.reward_model, sft_params)
    return sft_params, rlhf.make_reward(workspace, stages)


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=pipeline`: runs what has not run yet, and writes the report."""
    sft_params, reward = before_rlhf(workspace, stages)
    rlhf.run(workspace, stages, algorithm, reward, sft_params)
    evaluate.best_of_n(workspace, stages, sft_params, reward)
    workspace.metrics.close()
    if hosts.is_first():
        print(f"report: {write_report(workspace.directory)}")
