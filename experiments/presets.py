"""Writes the page of the presets, `docs/papers/presets.md`, with a picture of their coefficients.

python -m experiments.presets
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bench import preset_runs
from rlhf_jax.algorithms.policy_gradient import Config, policy_gradient
from rlhf_jax.algorithms.presets.preset import Preset
from rlhf_jax.algorithms.presets.table import PRESETS
from rlhf_jax.cli import command
from rlhf_jax.config import flatten
from rlhf_jax.face.settings import plain
from rlhf_jax.ops.policy_gradient.penalties import Penalty
from rlhf_jax.ops.scalars import with_values
from rlhf_jax.types import Batch, Outputs

PAGE = Path(__file__).parents[1] / "docs" / "papers" / "presets.md"
PICTURE = PAGE.with_suffix(".png")
COLUMNS = 5
DRAWN = 0.3  # probability of the token under the policy that drew it
RATIOS = np.geomspace(0.1, 1 / DRAWN, 120)
PPO = Config()
SIGNS = {1.0: ("A > 0", "tab:blue"), -1.0: ("A < 0", "tab:red")}


def coefficients(config: Config, sign: float) -> np.ndarray:
    """c of a completion of one token at each of `RATIOS`, float `[R]`.

    The token was drawn with probability `DRAWN` by the trainer's own params at the start of the
    round, so that every weight of staleness is 1. Penalties are left out.

    Args:
      config: of a policy gradient.
      sign: of the advantage, whose size is 1.
    """
    rows = len(RATIOS)
    drawn_RC = jnp.full((rows, 1), np.log(DRAWN), jnp.float32)
    batch = Batch(
        prompt_tokens_RQ=jnp.zeros((rows, 1), jnp.int32),
        prompt_mask_RQ=jnp.ones((rows, 1), bool),
        tokens_RC=jnp.zeros((rows, 1), jnp.int32),
        mask_RC=jnp.ones((rows, 1), bool),
        temperature=jnp.float32(1.0),
        behavior_logprob_RC=drawn_RC,
        proximal_logprob_RC=drawn_RC,
        advantage_RC=jnp.full((rows, 1), sign, jnp.float32),
    )
    loss = policy_gradient(with_values(config, {"penalty": Penalty()})).losses["policy"]

    def total(logprob_RC: jax.Array) -> jax.Array:
        return loss(Outputs(logprob_RC, jnp.zeros_like(logprob_RC)), batch)[0]

    slope_RC = jax.grad(total)(drawn_RC + jnp.log(jnp.asarray(RATIOS, jnp.float32))[:, None])
    return -np.asarray(slope_RC)[:, 0] / sign


def settings_of(preset: Preset) -> str:
    """The keys of a preset that differ from the defaults of `policy_gradient`, as text."""
    defaults = flatten(plain(Config()))
    changed = {
        key: value
        for key, value in flatten(plain(preset.settings)).items()
        if value != defaults[key]
    }
    return ", ".join(f"`{key}={_shown(value)}`" for key, value in changed.items()) or "the defaults"


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _panel(axes: Axes, name: str, config: Config) -> None:
    for sign, (label, color) in SIGNS.items():
        axes.plot(RATIOS, coefficients(PPO, sign), color=color, alpha=0.35, linewidth=3)
        axes.plot(RATIOS, coefficients(config, sign), color=color, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    axes.minorticks_off()
    axes.set_ylim(-0.1, 3.5)
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)


def picture() -> Figure:
    """The coefficient of every preset against the ratio, for both signs of A."""
    rows = -(-len(PRESETS) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 1.7 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).reshape(-1)
    for axes, (name, preset) in zip(grid, PRESETS.items(), strict=False):
        _panel(axes, name, preset.settings)
    for axes in grid[len(PRESETS) :]:
        axes.set_axis_off()
    grid[0].legend(fontsize=7)
    figure.supxlabel("ratio π / μ of the token", fontsize=9)
    figure.supylabel("coefficient c", fontsize=9)
    return figure


HEAD = """# Presets

Published losses of policy gradients as settings of one algorithm, `policy_gradient`. Each of them runs by
its name, as in `--config=configs/quickstart.py:algorithm=cispo` or `rl.algorithm("cispo")`. Its keys are
those of `policy_gradient`, with other defaults: `--config.algorithm.surrogate.cap=4` changes one.

The gradient of a token's loss is −A c, with A the advantage and c the coefficient. On samples of the
policy itself c is 1. r is the ratio of the policy π to the behavior policy μ, or where the formula says so
to the proximal policy ξ, which is the trainer's at the start of the round.

![Coefficients of the presets](presets.png)

The coefficient against the ratio, for a completion of one token with probability 0.3 under μ = ξ. Wide
pale lines: PPO's clip at 0.2. Presets that look like PPO here differ in the mean, in the advantage, or in
what they do with stale samples.
"""
TAIL = f"""
The last column is of a short run of the preset, and says what its parts cut of what they may cut: its
gate or its bounds of the coefficient, of the tokens with an advantage; its filter, of the completions'
tokens; its named weight of staleness, of the tokens, where the weight is not ξ/μ; and its rule of
groups, of the completions that it leaves out. The task is sums of two numbers below 50. The sampler is
{preset_runs.LAG} rounds behind, a round has {preset_runs.MINIBATCHES} minibatches, and there are
{preset_runs.ROUNDS * preset_runs.MINIBATCHES} updates of seed {preset_runs.SEED} at the learning rate
{preset_runs.RATE:g}. A preset whose parts all cut less than 1 % there is run again at
{preset_runs.HIGHER:g}, and one with a part that cuts more than 60 % at a tenth of the rate, then at a
hundredth and a thousandth. Bounds are those of the preset. One that still cuts less than 1 % is called inert. The numbers
are in `experiments/bench/results/preset_runs.jsonl`, written by `python -m experiments.bench.preset_runs`.

Penalties on the reference are not in the picture. A filter of completions keeps its place in the
denominator of the loss; `filter.flat` and `filter.truncated` take rows out of it.

Written by `python -m experiments.presets`.
"""


def page() -> str:
    """The page as Markdown."""
    lines = [
        "| name | paper | coefficient | settings | constants | share cut |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    runs = preset_runs.read()
    for name, preset in PRESETS.items():
        formula = preset.formula.replace("|", "\\|")
        paper = f"{preset.paper}: {preset.equation}"
        share = preset_runs.text_of(runs.get(name), preset.settings)
        cells = (f"`{name}`", paper, formula, settings_of(preset), preset.source, share)
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n" + "\n".join(lines) + "\n" + TAIL


def main() -> None:
    """Writes page and picture."""

    def body(place: command.Place) -> None:
        PAGE.write_text(page())
        picture().savefig(PICTURE, dpi=90)

    if status := command.call(body):
        raise SystemExit(status)


if __name__ == "__main__":
    command.start(main)
