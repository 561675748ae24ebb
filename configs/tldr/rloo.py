"""Proximal RLOO with two samples a prompt on TL;DR, asynchronous at lag 1 (async RLHF, arXiv
2410.18252).

Command:   python -m experiments.run --config=configs/tldr/rloo.py:size=410m
Hardware:  4 accelerators of 80 GB (the paper's runs); 410m and 1b fit on one, or on v5e:2x4;
           2.8b on v6e:2x4 (by formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/tldr, models/tldr-410m-sft, models/tldr-410m-reward and, for win-rates,
models/tldr-6.9b-reward. Its four checkpoints are evaluated by python -m experiments.evaluate
--directory=runs/tldr/410m/rloo 512 completions an update: 256 prompts. The ratio is to the policy
at the start of the round, as in the paper's code.
"""

from ml_collections import ConfigDict

from ..common import recipes, tldr


def get_config(argument: str = "") -> ConfigDict:
    """`:size=1b` takes Pythia 1b, `:size=2.8b` Pythia 2.8b; `:debug` the smallest sizes."""
    choice, small = recipes.chosen(argument, size="410m")
    config = tldr.rlhf(choice["size"], "rloo")
    config.algorithm.kl_weight, config.algorithm.clip = 0.05, 0.2
    config.algorithm.correction.ratio_to, config.algorithm.correction.correction = (
        "proximal",
        "none",
    )
    config.rlhf.prompts_per_update = 256
    config.rlhf.total_prompts = 256 * 256
    return recipes.debug(config) if small else config
