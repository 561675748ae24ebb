"""Online DPO of Rho-1B on GSM8K, asynchronous at lag 1 (async RLHF, arXiv 2410.18252).

Command:   python -m experiments.run --config=configs/gsm8k/online_dpo.py
Hardware:  4 accelerators of 48 GB (the paper: 4 L40S), or v5e:2x4 (by formula,
           docs/scale/what_fits.md)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

Needs data/gsm8k and models/rho-1b-sft-gsm8k, a checkpoint folder of Llama's architecture (the
paper's is realtreetune/rho-1b-sft-GSM8K). Greedy exact match on held-out problems is
gold_mean_greedy.
"""

from ml_collections import ConfigDict

from ..common import gsm8k, recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:debug` takes the smallest sizes."""
    _, small = recipes.chosen(argument)
    config = gsm8k.rlhf(
        "online_dpo", prompts_per_update=256, num_updates=512
    )  # 252 prompts where three devices trained
    config.algorithm.beta = 0.1
    return recipes.debug(config) if small else config
