"""Writes `docs/scale/what_fits.md`: which recipe fits on which devices, by the planner's formulas.

    python -m experiments.bench.fits

Needs neither devices nor folders: each recipe names the published shapes of its models. A round of
RLHF is planned as `plan=fit` plans it. SFT and reward models take the micro-batches and the remat
of least seconds that fit, which the recipes for a named device have.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.studies.markdown import table
from rlhf_jax import build
from rlhf_jax.building.components import gold_beside, stages
from rlhf_jax.cli import config_files
from rlhf_jax.config import fill
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.costs.hardware import Hardware
from rlhf_jax.planner.options import option
from rlhf_jax.planner.problem import Problem
from rlhf_jax.planner.simulation import plan_memory
from rlhf_jax.refusal import Refusal
from rlhf_jax.stages.api import Lengths
from rlhf_jax.stages.checks import supervised_memory
from rlhf_jax.stages.checks.settings import stages_of
from rlhf_jax.stages.checks.supervised_memory import Update
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.types import Placement

PAGE = Path(__file__).parents[2] / "docs" / "scale" / "what_fits.md"
DEVICES = (
    ("tpu-v5e", 1), ("tpu-v5e", 8), ("tpu-v6e", 8), ("tpu-v5p", 4), ("t4", 1), ("a100-40gb", 1),
    ("a100-80gb", 1), ("a100-80gb", 4), ("l40s", 4), ("h100", 2), ("h100", 8),
)  # fmt: skip
RECIPES = (
    *(
        f"configs/tldr/{name}.py:size={size}"
        for size in ("410m", "1b", "2.8b")
        for name in ("sft", "reward_model", "online_dpo", "rloo", "ppo", "best_of_n")
    ),
    *(f"configs/gsm8k/{name}.py" for name in ("online_dpo", "rloo", "ppo")),
    *(f"configs/no_robots/{name}.py" for name in ("sft", "reward_model", "online_dpo")),
    "configs/ultrafeedback/grpovi.py",
)
"""Relabelling alone, configs/tldr/comparisons.py, trains nothing."""


def cells(config: ConfigDict) -> list[str]:
    """The cells of a recipe, one for each kind of devices: GB of the fullest one, and seconds; or
    the number of devices that would do.
    """
    kinds = [(hardware.find(name), count) for name, count in DEVICES]
    if config.job in ("sft", "reward_model"):
        return [_supervised(update) for update in updates(config, kinds)]
    of = build.problem(config, *kinds[0])
    return [
        _round(dataclasses.replace(of, hardware=device, num_devices=count))
        for device, count in kinds
    ]


def _whole(num_devices: int) -> Placement:
    return Placement(tuple(range(num_devices)), (1, num_devices, 1))


def _round(of: Problem) -> str:
    try:
        plan = of.fit(_whole(of.num_devices))
    except Refusal as error:
        return "no" + _would_do(str(error))
    costs = of.formulas()
    chosen = [option(call, costs, plan.placements[call.name]) for call in of.calls]
    used = max(plan_memory.by_device(of.calls, chosen, of.work.versions, of.num_devices))
    used += costs.held_bytes
    seconds = of.expected(plan).simulation.seconds_per_round
    seconds += 0.0 if of.gold is None else of.gold_seconds().of_each_round
    return f"{used / 1e9:.1f} GB, {seconds:.3g} s; {_parts(plan.placements['train_policy'])}"


def updates(config: ConfigDict, kinds: Sequence[tuple[Hardware, int]]) -> list[Update]:
    """The update of a supervised stage on each kind of devices, given with their number."""
    lengths = fill(Lengths, config.to_dict()["lengths"], "lengths")
    settings, model = stages(config.to_dict()), build.planned_model(config)
    shape = supervised_memory.trained_shape(config.job, model)
    pretrained = fill(pretrained_models.Config, config.to_dict()["pretrained"], "pretrained")
    names = stages_of(config.job, settings, pretrained)
    gold = gold_beside(config.to_dict(), settings, lengths)
    gold = supervised_memory.gold_of(config.job, names, gold)
    return [
        supervised_memory.update(
            config.job,
            settings,
            shape,
            lengths,
            device,
            Placement(_whole(count).devices, _whole(count).mesh_shape),
            gold,
        )
        for device, count in kinds
    ]


def _supervised(update: Update) -> str:
    found = update.fastest()
    if found is None:
        return "no"
    used = update.used(found)
    bytes_ = used.working_bytes + used.resident_bytes + update.beside + update.costs.held_bytes
    return f"{bytes_ / 1e9:.1f} GB, {used.seconds:.3g} s; {_parts(found)}"


def _parts(placement: Placement) -> str:
    return f"{placement.num_micro_batches}" + (" remat" if placement.remat else "")


def _would_do(reason: str) -> str:
    """The end of a refusal that says how many devices would do."""
    end = reason.rpartition("; ")[2]
    return f" ({end.replace(' such devices would do', ' would do')})" if "would do" in end else ""


def page() -> str:
    """The page as Markdown: a row for each recipe, a column for each kind of devices."""
    head = ["recipe", *(f"{count} × {device}" for device, count in DEVICES)]
    rows = [
        [name.removeprefix("configs/").replace(".py", ""), *cells(config_files.load(name))]
        for name in RECIPES
    ]
    return PREAMBLE + table(head, rows) + "\n"


PREAMBLE = """# What fits where

**Does a recipe fit on the devices that I have?**

Each cell has the memory of the fullest device in GB, the seconds of a round (of an update, for SFT and
reward models), and the micro-batches of training, with "remat" where layers are computed twice. Policy,
reward model and state are sharded over `fsdp`; sampling and scoring have the mesh and the parts that
`plan=fit` chooses. Of a device's memory 8 % are left free. "no" means that no number of parts fits.

**By formula**: nothing here was compiled or measured. The formulas are held beside XLA's own figures in
`tests/planner/test_analytic.py`, and were chosen to err to the safe side. The folders of models need not
be there: recipes name published shapes (`pretrained.policy_shape`, `pretrained.reward_model_shape`,
`pretrained.gold_shape`). The gold model of TL;DR's rounds and comparisons is counted, and its seconds in
evaluations, in the mean over rounds. T4 has no bfloat16 units; its seconds are of float32.

The table is written by `python -m experiments.bench.fits`.

"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
