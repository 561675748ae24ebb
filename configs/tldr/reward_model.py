"""A reward model learned from relabelled comparisons of TL;DR summaries (arXiv 2410.18252).

Command:   python -m experiments.run --config=configs/tldr/reward_model.py:size=410m
Hardware:  4 accelerators of 80 GB (the paper's runs); 410m and 1b fit on one, or on v5e:2x4;
           2.8b on v6e:2x4 (by formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Relabels first where that has not run (configs/tldr/comparisons.py); needs the same folders. It is
exported for RLHF: python -m experiments.export --directory=runs/tldr/410m/reward_model
--stage=reward_model --to=models/tldr-410m-reward
"""

from ml_collections import ConfigDict

from ..common import recipes, tldr


def get_config(argument: str = "") -> ConfigDict:
    """`:size=1b` takes Pythia 1b, `:size=2.8b` Pythia 2.8b; `:debug` the smallest sizes."""
    choice, small = recipes.chosen(argument, size="410m")
    config = tldr.reward_model(choice["size"], "reward_model")
    return recipes.debug(config) if small else config
