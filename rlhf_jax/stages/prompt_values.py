"""Prompt values: scores of the reference policy's samples of every prompt, stored before RLHF, for
algorithms that measure a completion against them (A*-PO, arXiv 2505.20686, its stage 1).

The stage stores the scores and not a value of them, so that a temperature of the value may change
without sampling again. `stages/prompt_scores/stored.py` has the files.
"""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise

import numpy as np

from rlhf_jax import sampling, scoring
from rlhf_jax.devices import distributed
from rlhf_jax.records.notes import say
from rlhf_jax.records.progress import progress
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.run_directory import lock
from rlhf_jax.runtime import activity, credit
from rlhf_jax.runtime.program import Reward
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.comparisons import sampler
from rlhf_jax.stages.prompt_scores import stored
from rlhf_jax.stages.prompt_scores.stored import STAGE, Pass
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Algorithm, Array, Params, Samples


def run(workspace: Workspace, stages: Stages, reference_params: Params, reward: Reward) -> None:
    """Stores the scores of every prompt of the run that has none; does nothing where all have.

    Args:
      workspace: of the run.
      stages: the settings of every stage.
      reference_params: of the SFT policy, which draws the samples.
      reward: of the samples.
    """
    found, why = stored.of_run(workspace, stages.rlhf)
    if not distributed.agree(len(found.missing())):
        return
    own = Pass(workspace, stages.rlhf)
    with lock.hold(workspace.directory):
        if why or found.workspace is not workspace:
            say(
                f"{STAGE}: the stored scores of the run that is begun from are not all that this "
                f"run needs ({why or 'it has more prompts'}): its own are made"
            )
        workspace.record(STAGE)
        _make(own, reference_params, reward)


def _make(own: Pass, reference_params: Params, reward: Reward) -> None:
    """Samples and scores the batches that are missing."""
    began, workspace, config = time.perf_counter(), own.workspace, own.config
    settings, stream, starts = config.prompt_values, own.stream, own.missing()
    drawing = sampling.Config(
        workspace.lengths.max_completion_tokens, settings.num_samples, config.temperature
    )
    draw, score = sampler(workspace, drawing, STAGE), _scorer(own, reward)
    size, best, mean = settings.prompts_per_batch, [], []
    left = sum(min(size, own.num_prompts - start) for start in starts)
    with progress("Prompt values", own.num_prompts, own.num_prompts - left) as bar:
        # The devices draw the next batch while the host scores this one.
        batches = (draw(reference_params, stream.prompts(start, size)) for start in starts)
        for start, (samples, _) in zip(starts, pairwise(chain(batches, [None])), strict=True):
            assert samples is not None
            score_PS = score(samples).reshape(size, settings.num_samples)
            own.write(start, score_PS)
            best.append(score_PS.max(axis=1))
            mean.append(score_PS.mean(axis=1))
            bar.advance(
                min(size, own.num_prompts - start), score=mean[-1].mean(), best=best[-1].mean()
            )
    own.end()
    figures = {
        "score": float(np.concatenate(mean).mean()),
        "best_score": float(np.concatenate(best).mean()),
    }
    seconds = time.perf_counter() - began
    workspace.metrics.write("evaluate", own.num_prompts, figures, seconds, of=STAGE)
    workspace.metrics.write_timing(STAGE, activity.timings_since(began))


def _scorer(own: Pass, reward: Reward) -> Callable[[Samples], np.ndarray]:
    """The scores of samples as `credit` uses them, on the host, float32 `[B]`."""
    judge = None if reward.model is None else distributed.compiled(reward.model)
    finish = distributed.compiled(partial(_scores, reward=reward, config=own.config.scoring))

    def score(samples: Samples) -> np.ndarray:
        raw_B = None if judge is None else judge(reward.params, samples)
        raw = credit.raw_scores(reward, samples, raw_B)
        score_B = distributed.fetch(finish(samples, raw))
        texts = zip(own.stream.texts_of(samples), own.workspace.completions(samples), strict=True)
        return host_rewards.numbers(
            f"the reward {reward.name}", score_B, len(score_B), list(texts).__getitem__
        ).astype(np.float32)

    return score


def _scores(samples: Samples, raw: Array, *, reward: Reward, config: scoring.Config) -> Array:
    return credit.reward_scores(reward, config, samples, raw).score_B


def job(workspace: Workspace, stages: Stages, algorithm: Algorithm) -> None:
    """`--config.job=prompt_values`: this stage alone, with the SFT policy and the reward of the run's
    directory.
    """
    del algorithm
    reference_params = workspace.held(sft.load(workspace))
    run(workspace, stages, reference_params, rlhf.make_reward(workspace, stages))
