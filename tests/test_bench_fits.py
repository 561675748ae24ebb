"""Every recipe fits on the devices that its docstring names, by the planner's formulas, with the
settings that it has.
"""

import importlib
from dataclasses import replace

import pytest

from experiments.bench import fits
from rlhf_jax import build
from rlhf_jax.building.components import stages
from rlhf_jax.cli import config_files
from rlhf_jax.planner.costs import hardware
from rlhf_jax.stages.checks import supervised_memory
from rlhf_jax.types import Placement

FOUR, EIGHT = ("a100-80gb", 4), ("h100", 8)
STATED = {
    "tldr": [FOUR],
    "tldr 410m": [FOUR, ("a100-80gb", 1), ("tpu-v5e", 8)],
    "tldr 1b": [FOUR, ("a100-80gb", 1), ("tpu-v5e", 8)],
    "tldr 2.8b": [FOUR, ("tpu-v6e", 8)],
    "gsm8k": [("l40s", 4), ("tpu-v5e", 8)],
    "no_robots": [EIGHT, ("tpu-v5p", 4)],
    "ultrafeedback": [("h100", 2), ("tpu-v6e", 8)],
}
"""The devices of the recipes' docstrings: 80, 48 GB, and the TPU slices."""


def stated(recipe):
    folder, _, rest = recipe.removeprefix("configs/").partition("/")
    size = rest.partition("size=")[2]
    return STATED[f"{folder} {size}" if size else folder]


@pytest.mark.parametrize("recipe", fits.RECIPES)
def test_a_recipe_fits_on_the_devices_that_it_names(recipe):
    config = config_files.load(recipe)
    if config.job in ("sft", "reward_model"):
        kinds = [(hardware.find(name), count) for name, count in stated(recipe)]
        for update, kind in zip(fits.updates(config, kinds), kinds, strict=True):
            assert update.fastest() is not None, kind
        assert supervised_memory.micro_batches(stages(config.to_dict()))[config.job] == 0
        return
    assert config.plan == "fit"
    first, number = stated(recipe)[0]
    of = build.problem(config, hardware.find(first), number)
    for name, count in stated(recipe):
        here = replace(of, hardware=hardware.find(name), num_devices=count)
        plan = here.fit(Placement(tuple(range(count)), (1, count, 1)))
        here.expected(plan)  # raises where it does not fit


def test_docstrings_name_these_devices():
    for recipe in fits.RECIPES:
        path = recipe.partition(":")[0].removesuffix(".py").replace("/", ".")
        line = importlib.import_module(path).__doc__.partition("Hardware:")[2].partition("Time:")[0]
        for kind, words in {
            "tpu-v5e": "v5e:2x4",
            "tpu-v6e": "v6e:2x4",
            "tpu-v5p": "v5p:2x2x1",
        }.items():
            assert any(name == kind for name, _ in stated(recipe)) <= (words in line), recipe
        gigabytes, count = ("48 GB" if "gsm8k" in recipe else "80 GB"), stated(recipe)[0][1]
        assert f"{count} accelerators of {gigabytes}" in line


def test_the_page_has_the_figures_of_today():
    """One row of each kind; the page is written anew by `python -m experiments.bench.fits`."""
    page = fits.PAGE.read_text()
    for recipe in ("configs/tldr/sft.py:size=410m", "configs/tldr/ppo.py:size=410m"):
        row = " | ".join(fits.cells(config_files.load(recipe)))
        assert row in page, f"{recipe}: run python -m experiments.bench.fits"
