"""The pipeline on your own prompts, references and comparisons, read from local JSON-lines files.

Command:  python -m experiments.run --config=configs/jsonl.py --config.task.prompts=prompts.jsonl \
              --config.task.comparisons=comparisons.jsonl

A line of the prompts file is {"prompt": str, "references": [str, ...]}, with "answer": str where
exact match is to judge. Other columns of a row are handed to a reward of your own that asks for
them (`rlhf_jax/rewards/api.py`). A line of the comparisons file is {"prompt": str, "chosen": str,
"rejected": str}. `--config.job=dpo` trains the policy on these comparisons alone (offline DPO, with
`--config.dpo.beta=0.1` and so on): there is no reward model. Text is read as bytes unless a
tokenizer file is given (--config.tokenizer.kind=hf --config.tokenizer.path=tokenizer.json).
Hardware, time and numbers depend on the data.
"""

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.stages import dpo


def get_config() -> ConfigDict:
    config = build.default()
    config.directory = "runs/jsonl"
    config.task = build.component("tasks", "jsonl")
    config.tokenizer.kind = "bytes"
    config.lengths.max_prompt_tokens = 256
    config.lengths.max_completion_tokens = 128
    config.dpo = build.node(dpo.Config())  # read with job=dpo alone
    return config
