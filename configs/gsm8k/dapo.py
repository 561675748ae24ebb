"""DAPO of Rho-1B on GSM8K, with all of its parts: clip-higher, the mean over tokens, dynamic
sampling and the penalty on long completions (Yu et al. 2025, arXiv 2503.14476).

Command:   python -m experiments.run --config=configs/gsm8k/dapo.py
Hardware:  accelerators; not tried (configs/gsm8k/rloo.py, of the same model, names 4 of 48 GB)
Time:      not measured: no accelerator was at hand
Result:    not measured
Debug:     `:debug` runs it end to end with a random model of bytes on small files, two updates a stage

The paper trains Qwen2.5-32B on competition problems, with 16 completions of up to 20,480 tokens for
each of 512 prompts. Here are its rules on the model, the lengths and the sizes of
configs/gsm8k/rloo.py. Needs data/gsm8k and models/rho-1b-sft-gsm8k.
"""

from ml_collections import ConfigDict

from ..common import gsm8k, recipes


def get_config(argument: str = "") -> ConfigDict:
    """`:debug` takes the smallest sizes."""
    _, small = recipes.chosen(argument)
    # The preset has clip 0.2 and 0.28, the mean over tokens, no KL, and flat groups out of the
    # denominator.
    config = gsm8k.rlhf("dapo", prompts_per_update=32, num_updates=2048)
    config.rlhf.samples_per_prompt = 8
    config.rlhf.oversample = (
        3  # the paper samples on until no group is flat; this is a bound of ours
    )
    config.rlhf.temperature = 1.0
    # A fifth of the longest completion, as the paper's 4,096 of 20,480 tokens.
    config.rlhf.scoring.overlong.buffer = config.lengths.max_completion_tokens // 5
    config.rlhf.scoring.overlong.factor = 1.0
    if small:
        config = recipes.debug(config)
        config.rlhf.scoring.overlong.buffer = config.lengths.max_completion_tokens // 5
    return config
