"""SmolLM2-135M-Instruct, 4-bit values, as the policy that training begins with: what its recipes
share.
"""

from ml_collections import ConfigDict

from rlhf_jax import build


def recipe(directory: str, task: str) -> ConfigDict:
    """The published model is the policy of version 0 and the KL reference: there is no SFT.

    An update has 8 prompts. The folder is made by `python -m experiments.bench.smollm2`.

    Args:
      directory: of the run.
      task: a file of `rlhf_jax/tasks/`.
    """
    config = build.default()
    config.directory = directory
    config.task = build.component("tasks", task)
    config.pretrained.sft = "models/smollm2-135m"
    config.model.family, config.tokenizer.kind = "pretrained", "hf"
    config.rlhf.prompts_per_update = 8
    config.rlhf.scoring.replace_missing_eos = False
    config.rlhf.keep_checkpoints = 2
    return config
