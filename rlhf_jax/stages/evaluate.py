"""Evaluation of a finished run: its policy on held-out prompts, and best-of-n of the SFT policy to
stand beside it.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_jax import sampling
from rlhf_jax.devices import distributed
from rlhf_jax.records.lines import iterate
from rlhf_jax.records.notes import say
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.report.plots.trade_off import best_of_n_kl
from rlhf_jax.run_directory import stage_records
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.program import Reward
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.common.evaluation_metrics import Figures, win_rates
from rlhf_jax.stages.common.evaluator import Evaluator
from rlhf_jax.stages.common.reward_unit import learned_scores
from rlhf_jax.stages.comparisons import sampler
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Params

ONLY_READS = True
"""The job changes nothing of the run: it may run while another process trains."""
BEST_OF_N = "best_of_n"


def best_of_n_gold(gold_B: np.ndarray, reward_B: np.ndarray, group: int, n: int) -> np.ndarray:
    """Gold of the sample that the reward picks, in every disjoint set of n within groups of `group`
    samples of a prompt.
    """
    if group % n:
        raise Refusal(f"groups of {group} samples do not divide into sets of {n}")
    gold, reward = gold_B.reshape(-1, n), reward_B.reshape(-1, n)
    return np.take_along_axis(gold, reward.argmax(axis=1)[:, None], axis=1)[:, 0]


def best_of_n_line(
    evaluator: Evaluator, params: Params, sizes: Sequence[int], num_prompts: int
) -> list[Figures]:
    """Best-of-n of a policy under the learned reward, judged by gold, for every n of `sizes`:
    win-rate and analytic KL.
    """
    workspace, config = evaluator.workspace, evaluator.config
    group, num_prompts = max(sizes), min(num_prompts, config.num_prompts)
    assert evaluator.reward is not None
    draw = sampler(workspace, sampling.Config(evaluator.length, group, 1.0), "best_of_n")
    golds, rewards, asked = [], [], []
    size = max(1, config.prompts_per_batch * config.samples_per_prompt // group)
    drawn = []  # all of them before any is judged: the devices work while the host judges
    for batch, count in evaluator.batches(num_prompts, size):
        samples = draw(params, batch)
        drawn.append((samples, evaluator.reward.raw(samples), count))
    for samples, raw_B, count in drawn:
        texts, prompts = workspace.completions(samples), evaluator.stream.texts_of(samples)
        rows = slice(count * group)
        golds.append(
            evaluator.gold(prompts[rows], texts[rows], distributed.fetch(samples.finished_B)[rows])
        )
        rewards.append(evaluator.reward.standardised(raw_B)[rows])
        asked += prompts[rows]
    gold_B, reward_B = np.concatenate(golds), np.concatenate(rewards)
    lines = []
    for n in sizes:
        picked = best_of_n_gold(gold_B, reward_B, group, n)
        lines.append(
            {"n": float(n), "kl": float(best_of_n_kl(n)), "gold_mean": float(picked.mean())}
            | win_rates(asked[::n], picked, evaluator.reference_gold[:num_prompts])
        )
    return lines


def best_of_n(workspace: Workspace, stages: Stages, sft_params: Params, reward: Reward) -> None:
    """Writes the best-of-n line of the SFT policy under the learned reward, unless it is there.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
      sft_params: of the policy that samples.
      reward: that chooses.
    """
    if reward.model is None or not stages.best_of_n or not workspace.has_gold:
        return
    there = sorted(
        line["n"] for line in iterate(workspace.metrics.path) if line.get("of") == BEST_OF_N
    )
    if distributed.agree(there) == sorted(map(float, stages.best_of_n)):
        return
    began = time.perf_counter()
    workspace.metrics.resume(BEST_OF_N, 0)
    evaluator = Evaluator(workspace, stages.evaluate, sft_params, learned_scores(reward))
    held = evaluator.reference_params
    for line in best_of_n_line(evaluator, held, stages.best_of_n, stages.best_of_n_prompts):
        workspace.metrics.write("evaluate", 0, line, time.perf_counter() - began, of=BEST_OF_N)
    workspace.metrics.write_timing(BEST_OF_N, activity.timings_since(began))


def evaluator_of(workspace: Workspace, stages: Stages) -> Evaluator:
    """The evaluator of a run's directory, whose SFT policy must be there, and its reward unless it
    is a run of DPO.
    """
    reward = None
    if stage_records.policy_stage(workspace.directory) == rlhf.STAGE:
        reward = learned_scores(rlhf.make_reward(workspace, stages))
    reference_params = workspace.held(sft.load(workspace))
    return Evaluator(workspace, stages.evaluate, reference_params, reward)


def every_version(workspace: Workspace, stages: Stages) -> Iterator[tuple[int, Figures]]:
    """(version, figures) of the policy at version 0 and of every saved policy of a run's directory,
    oldest first.

    Version 0 is the SFT policy, or what the run began from; it is left out, and told, where that
    run has it no more. Raises MissingInput where the run has saved none.
    """
    evaluator = evaluator_of(workspace, stages)
    try:
        first = workspace.held(rlhf.first_policy(workspace, evaluator.reference_params))
        yield 0, evaluator.evaluate(first, stages.evaluate.num_prompts)[0]
    except MissingInput as error:
        say(f"version 0 is not evaluated: {error}")
    for version in rlhf.versions(workspace):
        params = workspace.held(rlhf.load(workspace, version)[0])
        yield version, evaluator.evaluate(params, stages.evaluate.num_prompts)[0]


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=evaluate`: evaluates the newest policy of the run's directory again, and prints
    the figures.
    """
    del algorithm
    loaded, version = rlhf.load(workspace)
    params = workspace.held(loaded)
    del loaded  # of which only what is held stays
    figures, _ = evaluator_of(workspace, stages).evaluate(params, stages.evaluate.num_prompts)
    print(f"policy after {version} updates, {stages.evaluate.num_prompts} held-out prompts:")
    for name, value in figures.items():
        print(f"  {name:24s} {value:.4f}")
