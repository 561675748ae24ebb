"""Measures, before the first update, whether a verified reward can teach the first policy anything.

A group of samples that all pass or all fail has no advantage, and trains on nothing. Where the
first policy solves nearly nothing or nearly everything, most groups are such. The run then ends
here, with the figures, and not after hours.
"""

import time

import numpy as np

from rlhf_jax.devices import distributed
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common.terms import is_plain, parse
from rlhf_jax.runtime import activity
from rlhf_jax.runtime.spec import Reward
from rlhf_jax.sampling import Config as SamplingConfig
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.comparisons import sampler
from rlhf_jax.stages.settings.rlhf import Config, SignalConfig
from rlhf_jax.types import Params

OF = "signal"
"""Purpose of the random key, and name of the figures in metrics.jsonl."""


def check_reward(config: SignalConfig, reward: str) -> None:
    """Raises Refusal for a reward that no sample passes or fails.

    Args:
      config: of the measurement.
      reward: of the run, as the config names it.
    """
    terms = parse(reward)
    if config.num_prompts and (not is_plain(terms) or terms[0].name == LEARNED):
        raise Refusal(
            f"rlhf.signal.num_prompts is {config.num_prompts} and reward is {reward!r}: a pass "
            "rate needs one reward of 0 and 1 on text; accepted: rlhf.signal.num_prompts=0, or "
            "a reward such as exact_match"
        )


def scores(workspace: Workspace, config: Config, policy: Params, reward: Reward) -> np.ndarray:
    """Scores of fresh samples on the first training prompts of the run, float32 `[P, G]`.

    Args:
      workspace: of the run.
      config: of the RLHF stage, whose temperature and samples per prompt are taken.
      policy: params that sample.
      reward: on text.
    """
    assert reward.host is not None
    sampling = SamplingConfig(
        workspace.lengths.max_completion_tokens, config.samples_per_prompt, config.temperature
    )
    draw = sampler(workspace, sampling, OF)
    stream, found = workspace.stream("train", STAGE), []
    size = config.prompts_per_update * config.num_minibatches  # which the mesh divides
    for start in range(0, config.signal.num_prompts, size):
        given = distributed.fetch(reward.host(draw(policy, stream.prompts(start, size))))
        found.append(np.asarray(given).reshape(size, -1))
    return np.concatenate(found)[: config.signal.num_prompts]


def figures(scores_PG: np.ndarray) -> dict[str, float]:
    """The pass rate, and the share of groups whose samples all have one score.

    Args:
      scores_PG: of samples, 0 or 1.

    Raises Refusal for any other score.
    """
    wrong = scores_PG[(scores_PG != 0) & (scores_PG != 1)]
    if wrong.size:
        raise Refusal(
            f"rlhf.signal.num_prompts is {len(scores_PG)}, and the reward gave {wrong[0]}: a pass "
            "rate needs scores of 0 and 1; accepted: rlhf.signal.num_prompts=0, or such a reward"
        )
    flat_P = scores_PG.max(axis=1) == scores_PG.min(axis=1)
    return {
        "pass_rate": float(scores_PG.mean(dtype=np.float64)),
        "flat_group_share": float(flat_P.mean()),
    }


def check(workspace: Workspace, config: Config, policy: Params, reward: Reward) -> None:
    """Prints and records the figures of the first policy, where `rlhf.signal.num_prompts` asks for
    them.

    Args:
      workspace: of the run.
      config: of the RLHF stage.
      policy: params of version 0.
      reward: of the run.

    Raises Refusal where they are outside of the bounds of `rlhf.signal`.
    """
    asked = config.signal
    if not asked.num_prompts:
        return
    began = time.perf_counter()
    with activity.at_work("the pass rate of the first policy"):
        found = figures(scores(workspace, config, policy, reward))
    workspace.metrics.resume(OF, 0)
    workspace.metrics.write("evaluate", 0, found, time.perf_counter() - began, of=OF)
    rate, flat = found["pass_rate"], found["flat_group_share"]
    said = (
        f"the first policy passes {100 * rate:.1f} % of {config.samples_per_prompt} samples on "
        f"each of {asked.num_prompts} training prompts, and {100 * flat:.1f} % of the prompts have "
        "one score for all their samples"
    )
    if distributed.is_first():
        print(said)
    if not (asked.min_pass_rate <= rate <= asked.max_pass_rate and flat <= asked.max_flat_groups):
        raise Refusal(
            f"{said}; accepted: a pass rate of rlhf.signal.min_pass_rate={asked.min_pass_rate} to "
            f"rlhf.signal.max_pass_rate={asked.max_pass_rate}, and at most "
            f"rlhf.signal.max_flat_groups={asked.max_flat_groups} of the prompts"
        )
