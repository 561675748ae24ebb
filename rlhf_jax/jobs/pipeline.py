"""The chain: sft, comparisons, reward_model, rlhf, best-of-n beside it, report; a stage whose artefact is there is skipped."""

import time
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from rlhf_jax.jobs import evaluate, relabel, reward_model, rlhf, sft
from rlhf_jax.jobs.api import Workspace
from rlhf_jax.observe.metrics import read
from rlhf_jax.report.html import write_report
from rlhf_jax.rewards import exact_match, gold, learned
from rlhf_jax.runtime.program import Reward
from rlhf_jax.types import Algorithm, Params, Samples

BEST_OF_N = "best_of_n"


@dataclass(frozen=True)
class Stages:
    """The settings of every stage. `reward` is a file of `rewards/`: only learned rewards need comparisons."""

    sft: sft.Config
    comparisons: relabel.Config
    reward_model: reward_model.Config
    rlhf: rlhf.Config
    evaluate: evaluate.Config
    reward: str = "learned"
    best_of_n: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_n_prompts: int = 256


def make_reward(workspace: Workspace, stages: Stages, sft_params: Params) -> Reward:
    """The reward of the RLHF stage; a learned one is trained here, or read."""
    if stages.reward == "learned":
        relabel.run(workspace, stages.comparisons, sft_params)
        params, standard = reward_model.run(workspace, stages.reward_model, sft_params)
        return Reward(learned.make(workspace.value_model), params, mean=standard.mean, std=standard.std)
    make = {"gold": gold.make, "exact_match": exact_match.make}[stages.reward]
    judge = make(workspace.task)

    def host(samples: Samples) -> np.ndarray:
        finished = jax.device_get(samples.finished_B).tolist()
        return judge(workspace.prompt_texts(samples), workspace.completions(samples), finished)

    return Reward(host=host)


def best_of_n(workspace: Workspace, stages: Stages, sft_params: Params, reward: Reward) -> None:
    """Best-of-n of the SFT policy under the learned reward: the line that the trained policy is drawn beside."""
    lines = read(workspace.metrics.path)
    if reward.model is None or not stages.best_of_n:
        return
    if sum(line.get("of") == BEST_OF_N for line in lines) == len(stages.best_of_n):
        return
    began = time.perf_counter()
    workspace.metrics.resume(BEST_OF_N, 0)
    scores = evaluate.learned_scores(reward.model, reward.params, reward.mean, reward.std)
    evaluator = evaluate.Evaluator(workspace, stages.evaluate, sft_params, scores)
    figures = evaluate.best_of_n_line(evaluator, sft_params, stages.best_of_n, stages.best_of_n_prompts)
    for line in figures:
        workspace.metrics.write("evaluate", 0, line, time.perf_counter() - began, of=BEST_OF_N)
    workspace.metrics.write_timing(BEST_OF_N, {"wall_seconds": time.perf_counter() - began})


def run(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """Runs what has not run yet, and writes the report."""
    rlhf.check(stages.rlhf, algorithm, workspace.mesh)
    report = partial(write_report, workspace.directory)
    sft_params = sft.run(workspace, stages.sft)
    reward = make_reward(workspace, stages, sft_params)
    rlhf.run(workspace, stages.rlhf, algorithm, reward, sft_params, stages.evaluate)
    best_of_n(workspace, stages, sft_params, reward)
    workspace.metrics.close()
    print(f"report: {report()}")
