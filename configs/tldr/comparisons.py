"""Comparisons of TL;DR summaries relabelled by a gold reward model, as in async RLHF (arXiv
2410.18252).

Command:   python -m experiments.run --config=configs/tldr/comparisons.py:size=410m
Hardware:  4 accelerators of 80 GB (the paper's runs); 410m and 1b fit on one, or on v5e:2x4;
           2.8b on v6e:2x4 (by formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/tldr, data/tldr_comparisons, models/tldr-410m-sft and models/tldr-6.9b-reward, a sequence
classifier (the paper: Pythia 6.9b deduped). A pair that gold scores alike keeps the order that
people gave it. Writes comparisons/ in the directory of configs/tldr/reward_model.py, and the share
on which gold and people agree into metrics.jsonl.
"""

from ml_collections import ConfigDict

from ..common import recipes, tldr


def get_config(argument: str = "") -> ConfigDict:
    """`:size=1b` takes Pythia 1b, `:size=2.8b` Pythia 2.8b; `:debug` the smallest sizes."""
    choice, small = recipes.chosen(argument, size="410m")
    config = tldr.reward_model(choice["size"], "comparisons")
    return recipes.debug(config) if small else config
