"""Supervised fine-tuning of Pythia on TL;DR summaries: the policy that async RLHF begins with
(arXiv 2410.18252).

Command:   python -m experiments.run --config=configs/tldr/sft.py:size=410m
Hardware:  4 accelerators of 80 GB (the paper's runs); 410m and 1b fit on one, or on v5e:2x4;
           2.8b on v6e:2x4 (by formula, docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/tldr (see README) and models/pythia-410m-deduped, a checkpoint folder. Its policy is
exported for the next stages: python -m experiments.export --directory=runs/tldr/410m/sft
--stage=sft --to=models/tldr-410m-sft The paper's code learns the prompt's tokens too; here the loss
is on the summary.
"""

from ml_collections import ConfigDict

from ..common import recipes, tldr


def get_config(argument: str = "") -> ConfigDict:
    """`:size=1b` takes Pythia 1b, `:size=2.8b` Pythia 2.8b; `:debug` the smallest sizes."""
    choice, small = recipes.chosen(argument, size="410m")
    config = tldr.base(choice["size"], "sft")
    config.job = "sft"
    config.pretrained.base = f"models/pythia-{choice['size']}-deduped"
    config.lengths.max_completion_tokens = 53
    config.sft.rows_per_update = 32
    config.sft.num_updates = tldr.NUM_POSTS // 32  # one epoch
    config.sft.checkpoint_every = 1000
    recipes.plain_adam(config.sft.optimizer, 1e-5, "cosine")
    return recipes.debug(config) if small else config
