"""What of GRPOVI's effect is shape and what is scale: GRPO, GRPOVI and controls, each at its own best settings.

Command:   python -m experiments.sweep --config=configs/studies/grpovi.py
Hardware:  two CPU cores
Budget:    13 arms x 9 settings x 1 seed x 16 updates, the best 4 x 1 seed x 32 updates, those next to a best one on an edge,
           then 5 seeds x 32 updates: about 270 cells of 15 to 35 s
Result:    README.md, "Does GRPOVI help?"

An arm is an algorithm's file and its overrides. Learning rate and KL weight are chosen for each arm by gold on seeds 100
and 101 and one half of the held-out prompts, and reported on seeds 0-4 and the other half. `:tiny` has sizes for a test.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
from experiments.study import Arm, Rung, Study
from rlhf_jax import build
from rlhf_jax.refusal import Refusal

NO_CORRECTION = {"algorithm.correction.ratio_to": "behavior", "algorithm.correction.correction": "none"}
RANGES = (3.0, 6.0, 12.0)


def arms() -> tuple[Arm, ...]:
    """GRPO with and without division, GRPOVI in three ranges, the paper's own weights, and the controls."""
    kinds = ("standardized", "centered")
    found = [Arm(f"grpo_{kind}", "grpo", {"algorithm.advantage": kind}) for kind in kinds]
    for kind in kinds:
        for bound in RANGES:
            ends = {"algorithm.low": -bound, "algorithm.high": bound}
            found.append(Arm(f"grpovi_{kind}_{bound:g}", "grpovi", {"algorithm.advantage": kind} | ends))
    found.append(Arm("grpovi_reference_weights", "grpovi", {"algorithm.weights": "reference"}))
    found += [Arm(name, name) for name in ("matched_std", "constant_gain", "best_of_group", "gopo")]
    return tuple(Arm(arm.name, arm.algorithm, {**arm.overrides, **NO_CORRECTION}) for arm in found)


def base() -> ConfigDict:
    """The quickstart with half as many prompts an update, G = 8, and nine evaluations, and on-policy."""
    config = quickstart.get_config()
    config.algorithm = build.component("algorithms", "grpo")
    config.rlhf.loop, config.rlhf.lag, config.rlhf.ledger = "synchronous", 0, False
    config.rlhf.prompts_per_update = 32
    config.rlhf.total_prompts = 32 * 32
    config.rlhf.evaluate_every = 4
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
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = config.evaluate.prompts_per_batch = 16
    config.best_of_n_prompts = 16
    return config


def get_study(argument: str = "") -> Study:
    """The study; `tiny` is for tests."""
    if argument not in ("", "tiny"):
        raise Refusal(f"the study's argument is {argument!r}; accepted: tiny, or none")
    grid = {"rlhf.optimizer.learning_rate": (5e-4, 1e-3, 2e-3), "algorithm.kl_weight": (0.0, 0.04, 0.16)}
    wider = {"rlhf.optimizer.learning_rate": 2.0, "algorithm.kl_weight": 4.0}
    updates = (16, 32) if not argument else (1, 2)
    return Study(
        directory=Path("runs/studies/grpovi" + ("_tiny" if argument else "")),
        base=tiny if argument else base,
        arms=arms(),
        grid=grid,
        open_ended=wider,
        rungs=(Rung(updates[0], (100,), 4 if not argument else 2), Rung(updates[1], (101,), 1)),
        max_widenings=3 if not argument else 1,
        report_updates=updates[1],
        report_seeds=(0, 1, 2, 3, 4),
    )
