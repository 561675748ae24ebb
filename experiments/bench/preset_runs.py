"""A short run of every preset: the share of what its gate, its filter and its weight may cut that
they cut.

Sums of two numbers below 50, a decoder of one layer, exact match as the reward. All presets begin
from one SFT policy and one seed. The sampler is `LAG` rounds behind, and a round is trained on in
`MINIBATCHES` updates, so that ratios leave 1 for both reasons. Bounds are those of the preset. One
that cuts less than `LEAST` at the learning rate `RATE` is run again at `HIGHER`, and one that cuts
more than `MOST` at those of `LOWER` in turn.

A line of `LINES` for each preset, which the page of the presets reads. Presets whose line is there,
with the settings that they have now, are not run again. Then `python -m experiments.presets` writes
the page.

    python -m experiments.bench.preset_runs
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import addition
from rlhf_jax import build
from rlhf_jax.algorithms.policy_gradient import Config
from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.cli import command
from rlhf_jax.config import flatten
from rlhf_jax.face import components
from rlhf_jax.face.settings import plain
from rlhf_jax.ops.corrections import log_staleness, resolve, staleness_weight
from rlhf_jax.ops.masked import masked_count
from rlhf_jax.records import jsonl
from rlhf_jax.runtime import synchronous
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.types import Batch, Params

LINES = Path(__file__).parent / "results" / "preset_runs.jsonl"
SEED, LAG, MINIBATCHES, ROUNDS = 0, 4, 4, 16
RATE, HIGHER, LOWER = 1e-3, 4e-3, (1e-4, 1e-5, 1e-6)
LEAST, MOST = 0.01, 0.6
WEIGHTS = ("truncate", "mask", "second_moment")
PARTS = ("gate", "filter", "weight", "groups")
"""Of what the share is: tokens with an advantage, completions' tokens, tokens, completions."""


def config() -> ConfigDict:
    """The config of SFT and of every preset's run; its algorithm is not used."""
    values = addition.get_config()
    values.seed, values.task.limit = SEED, 50
    values.model.update({"width": 64, "ffn_width": 256, "num_layers": 1})
    values.lengths.update({"max_prompt_tokens": 6, "max_completion_tokens": 3})
    values.sft.update({"num_updates": 300, "rows_per_update": 64, "checkpoint_every": 0})
    values.sft.optimizer.learning_rate = 2e-3
    values.rlhf.update({"prompts_per_update": 16, "num_minibatches": MINIBATCHES, "lag": LAG})
    values.rlhf.total_prompts = ROUNDS * MINIBATCHES * 16
    values.rlhf.optimizer.update({"learning_rate": RATE, "schedule": "constant"})
    return values


def settings_of(config: Config) -> dict[str, Any]:
    """The settings of a preset as JSON can say them, by their key."""
    return json.loads(json.dumps(flatten(plain(config))))


def parts_of(config: Config) -> tuple[str, ...]:
    """The parts of a preset that can cut: names of `PARTS`.

    Args:
      config: of a policy gradient. A weight counts where the config names it, and not where "auto"
        chooses it for stale rounds.
    """
    surrogate, rows = config.surrogate, config.filter
    bounded = surrogate.flow == "logprob" and surrogate.cap and surrogate.floor != surrogate.cap
    there = {
        "gate": surrogate.gate != "none" or bool(bounded),
        "filter": rows.reads != "none",
        "weight": config.correction.correction in WEIGHTS,
        "groups": rows.counts,
    }
    return tuple(part for part in PARTS if there[part])


def weights_cut(config: Config, batch: Batch) -> tuple[float, float]:
    """Tokens of a round whose weight of staleness is held apart from ξ / μ, and all tokens.

    Args:
      config: of the preset, whose correction names a weight.
      batch: of the round.
    """
    assert batch.proximal_logprob_RC is not None
    assert batch.behavior_logprob_RC is not None
    correction, mask_RC = resolve(config.correction, lag=LAG), batch.mask_RC
    logs = batch.proximal_logprob_RC, batch.behavior_logprob_RC, mask_RC
    weight_RC = staleness_weight(correction, *logs)
    if correction.correction == "second_moment":
        free_RC = jnp.ones_like(weight_RC)
    else:
        free_RC = jnp.exp(log_staleness(*logs, correction.level))
    return float(masked_count(mask_RC & (weight_RC != free_RC))), float(masked_count(mask_RC))


def shares_of(
    config: Config, workspace: Workspace, stages: Stages, name: str, params: Params, rate: float
) -> dict[str, Any]:
    """Runs a preset from the SFT policy. Returns the share cut of each of its parts over all updates,
    and the mean score of the first and of the last round.

    Args:
      config: of the preset.
      workspace: of the run.
      stages: settings of the run.
      name: of the preset.
      params: of the SFT policy.
      rate: the learning rate.
    """
    algorithm = components.for_schedule(
        components.algorithm(name), lag=LAG, scheduled=False, exact_sampler=True
    )
    reward = rlhf.make_reward(workspace, stages)
    optimizer = replace(stages.rlhf.optimizer, learning_rate=rate)
    program = rlhf.make_program(
        workspace, replace(stages.rlhf, optimizer=optimizer), algorithm, reward, params
    )
    parts, scores = parts_of(config), []
    cut, every = dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0.0)

    def add(part: str, found: float, count: float) -> None:
        if part in parts:
            cut[part] += found
            every[part] += count

    for event in synchronous.run(program, program.init(params), 0, {}):
        if isinstance(event, synchronous.Scored):
            scores.append(float(jnp.mean(event.scores.score_B)))
            if "weight" in parts:
                add("weight", *weights_cut(config, event.batch))
        if isinstance(event, synchronous.Updated):
            metrics = jax.device_get(event.metrics)
            for sign in ("positive", "negative"):
                share = metrics[f"cut_share_{sign}"]
                add("gate", float(share.total), float(share.count))
            for part, metric in (("filter", "kept_share"), ("groups", "counted_share")):
                if part in parts:
                    share = metrics[metric]
                    add(part, float(share.count - share.total), float(share.count))
    shares = {part: round(cut[part] / every[part], 6) for part in parts}
    scores = [round(scores[0], 4), round(scores[-1], 4)]
    return {"learning_rate": rate, "shares": shares, "scores": scores}


def next_rate(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """The learning rate of a preset's next run, or None where there is none.

    Args:
      runs: of the preset, the first one at `RATE`.
    """
    largest = max(runs[-1]["shares"].values(), default=LEAST)
    if largest > MOST:
        return next((rate for rate in LOWER if rate < runs[-1]["learning_rate"]), None)
    return HIGHER if largest < LEAST and len(runs) == 1 else None


def read() -> dict[str, Mapping[str, Any]]:
    """The lines of the presets whose settings are those of the line, by preset. A key that a line
    does not have is younger than the line, and had its default there.
    """
    if not LINES.exists():
        return {}
    defaults = settings_of(Config())
    lines = {line["preset"]: line for line in map(json.loads, LINES.read_text().splitlines())}
    return {
        name: lines[name]
        for name, preset in PRESETS.items()
        if name in lines and defaults | lines[name]["settings"] == settings_of(preset.settings)
    }


def text_of(line: Mapping[str, Any] | None, config: Config) -> str:
    """The share cut of a preset, as the page has it.

    Args:
      line: of the preset's run; None: there is none.
      config: of the preset.
    """
    if not parts_of(config):
        return "no gate"
    if line is None:
        return "not run"
    run = line["runs"][-1]
    text = ", ".join(f"{part} {_percent(share)}" for part, share in run["shares"].items())
    if run["learning_rate"] != RATE:
        text += f" at rate {run['learning_rate']:g}"
    return text + ("" if max(run["shares"].values()) >= LEAST else ": inert in our settings")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"


def main() -> None:
    """Runs the presets that have no line."""

    def body(place: command.Place) -> None:
        lines = read()
        missing = [name for name in PRESETS if name not in lines]
        if not missing:
            print(f"every preset has its line in {LINES}")
            return
        with tempfile.TemporaryDirectory() as folder:
            values = config().to_dict() | {"directory": folder}
            workspace, stages = build.workspace(values), build.stages(values)
            params = sft.run(workspace, stages.sft)
            for name in missing:
                settings = PRESETS[name].settings
                runs = [shares_of(settings, workspace, stages, name, params, RATE)]
                while again := next_rate(runs):
                    runs.append(shares_of(settings, workspace, stages, name, params, again))
                print(name, *runs, flush=True)
                lines[name] = {
                    "preset": name,
                    "seed": SEED,
                    "runs": runs,
                    "settings": settings_of(settings),
                }
                ordered = [json.dumps(lines[other]) for other in PRESETS if other in lines]
                jsonl.replace(LINES, ("\n".join(ordered) + "\n").encode())

    if status := command.call(body):
        raise SystemExit(status)


if __name__ == "__main__":
    command.start(main)
