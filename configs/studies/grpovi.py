"""Do larger reward variances help GRPO? GRPO and GRPOVI at equal settings, with the controls that
split its effect.

Command:   python -m experiments.sweep --config=configs/studies/grpovi.py --workers=2
Hardware:  two CPU cores
Protocol:  experiments/studies/grpovi/protocol.md (hypotheses, cells, margins, stop rule)
Budget:    5 arms x 12 settings x 5 seeds, and 8 arms x 1 setting x 5 seeds: 340 cells of 32 updates
Result:    docs/results/grpovi.md, written from experiments/studies/grpovi/cells.jsonl

Nothing is tuned: arms are compared at the same learning rate and KL weight, over a full grid. Every
arm is on-policy, without a correction (`behavior`/`none`). `:tiny` has sizes for a test.
"""

from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.refusal import Refusal
from rlhf_jax.sweeps.study import Arm, Setting, Study

from ..common import reviews

NO_CORRECTION = {
    "algorithm.correction.ratio_to": "behavior",
    "algorithm.correction.correction": "none",
}
RATE, KL_WEIGHT = "rlhf.optimizer.learning_rate", "algorithm.kl_weight"
GRID = {RATE: (1e-3, 2e-3, 4e-3), KL_WEIGHT: (0.0, 0.04, 0.16, 0.64)}
ONE_SETTING: tuple[Setting, ...] = (
    ((RATE, 2e-3), (KL_WEIGHT, 0.16)),
)  # of the arms that are only described
EVALUATE_AT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CLIP = 6.0  # of the adjusted rewards, in the arms that are compared


def grpovi(advantage: str, bound: float, name: str, settings: tuple[Setting, ...] = ()) -> Arm:
    """GRPOVI with rewards clipped to [-bound, bound]."""
    overrides = {"algorithm.advantage": advantage, "algorithm.low": -bound, "algorithm.high": bound}
    return Arm(name, "grpovi", overrides | NO_CORRECTION, settings=settings)


def arms() -> tuple[Arm, ...]:
    """The five arms of the primary contrasts over the grid, then those that are described at one
    setting.
    """
    kinds = ("standardized", "centered")
    found = [
        Arm(f"grpo_{kind}", "grpo", {"algorithm.advantage": kind} | NO_CORRECTION) for kind in kinds
    ]
    found += [grpovi(kind, CLIP, f"grpovi_{kind}") for kind in kinds]
    found.append(Arm("matched_std", "matched_std", NO_CORRECTION))
    found += [
        grpovi(kind, bound, f"grpovi_{kind}_{bound:g}", ONE_SETTING)
        for kind in kinds
        for bound in (CLIP / 2, CLIP * 2)
    ]
    weights = {"algorithm.weights": "reference"} | NO_CORRECTION
    found.append(Arm("grpovi_reference_weights", "grpovi", weights, settings=ONE_SETTING))
    return (
        *found,
        *(
            Arm(name, name, NO_CORRECTION, settings=ONE_SETTING)
            for name in ("constant_gain", "best_of_group", "gopo")
        ),
    )


def base() -> ConfigDict:
    """The chain on templated reviews with half as many prompts an update, G = 8, dense evaluations, on-policy."""
    config = reviews.base()
    config.algorithm = build.component("algorithms", "grpo")
    config.rlhf.loop, config.rlhf.lag, config.rlhf.ledger = "synchronous", 0, False
    config.rlhf.prompts_per_update = 32
    config.rlhf.total_prompts = 32 * 32
    config.rlhf.evaluate_every, config.rlhf.evaluate_at = 0, EVALUATE_AT
    config.rlhf.checkpoint_every = 0
    config.rlhf.log_samples = 0
    config.evaluate.num_prompts = 256
    config.best_of_n_prompts = 128
    return config


def tiny() -> ConfigDict:
    """Sizes for a test: what is learned is of no interest."""
    config = base()
    config.model.width, config.model.ffn_width, config.model.num_layers = 16, 32, 1
    config.sft.num_updates, config.sft.checkpoint_every = 4, 4
    config.comparisons.num_train, config.comparisons.num_heldout = 64, 64
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 32
    config.reward_model.standardize_prompts = 64
    config.rlhf.prompts_per_update, config.rlhf.samples_per_prompt = 4, 4
    config.rlhf.evaluate_at = (1,)
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 16
    config.best_of_n_prompts = 16
    return config


def get_study(argument: str = "") -> Study:
    """The study; `tiny` is for tests."""
    if argument not in ("", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: tiny, or none")
    return Study(
        directory=Path("runs/studies/grpovi" + ("_tiny" if argument else "")),
        base=tiny if argument else base,
        arms=arms(),
        grid=GRID,
        open_ended={},
        rungs=(),
        report_updates=2 if argument else 32,
        report_seeds=(0, 1, 2, 3, 4),
        cells=None if argument else Path("experiments/studies/grpovi/cells.jsonl"),
    )
