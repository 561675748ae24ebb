"""Shared parts of the papers' recipes: their arguments, accelerators' settings, and the sizes of
`:debug`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax import build
from rlhf_jax.refusal import Refusal


def chosen(argument: str, **defaults: str) -> tuple[dict[str, str], bool]:
    """The choices of `:size=1b,debug` over the defaults, and True where `debug` is among them.
    Raises Refusal for other names.
    """
    parts = [part for part in argument.split(",") if part]
    return build.choices(
        ",".join(part for part in parts if part != "debug"), **defaults
    ), "debug" in parts


def one_of(choices: Mapping[str, Any], key: str, value: str) -> Any:
    """The entry of a choice. Raises Refusal naming those there are."""
    if value not in choices:
        raise Refusal(f"the recipe's {key} is {value!r}; accepted: {', '.join(choices)}")
    return choices[value]


def recipe(directory: str, task: str) -> ConfigDict:
    """Every key at its default, for accelerators: bfloat16 products, params and batch sharded over
    all devices, the calls of a round cut so that they fit in memory, the tokenizer of the policy's
    folder; rewards in the reward model's own unit, as
    the papers' numbers are.
    """
    config = build.default()
    config.directory = directory
    config.task = build.component("tasks", task)
    if "data_dir" in config.task:
        config.task.data_dir = f"data/{task}"
    config.tokenizer.kind = "hf"
    config.model.family, config.model.dtype = "pretrained", "bfloat16"
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.reward_model.standardize = False
    config.plan = "fit"
    config.sft.num_micro_batches = config.reward_model.num_micro_batches = 0
    config.rlhf.num_compactions, config.rlhf.publish_dtype = 2, "bfloat16"
    return config


def plain_adam(optimizer: ConfigDict, learning_rate: float, schedule: str) -> None:
    """Hugging Face's AdamW as the async RLHF code leaves it: no decay, no warm-up, gradients not
    clipped.
    """
    optimizer.learning_rate, optimizer.schedule, optimizer.max_grad_norm = (
        learning_rate,
        schedule,
        0.0,
    )


def debug(config: ConfigDict) -> ConfigDict:
    """The recipe end to end in the smallest sizes, on small files: a random decoder on bytes, and
    two updates a stage.

    `pretrained` names no folder then; data directories, and a reward model where the task has no
    comparisons, are given by hand.
    """
    config.directory += "_debug"
    config.model = build.model("gpt_neox", "quickstart")
    config.model.width, config.model.num_layers, config.model.num_heads, config.model.ffn_width = (
        16,
        1,
        2,
        32,
    )
    config.tokenizer.kind, config.plan = "bytes", ""
    config.pretrained.base = config.pretrained.sft = config.pretrained.reward_model = (
        config.pretrained.gold
    ) = ""
    config.mesh.fsdp = 1
    config.lengths.max_prompt_tokens, config.lengths.max_completion_tokens = 192, 16
    config.sft.num_updates, config.sft.rows_per_update, config.sft.num_micro_batches = 2, 4, 1
    config.sft.min_whole_references = 0.0  # real references are longer than 16 bytes
    for optimizer in (config.sft.optimizer, config.reward_model.optimizer, config.rlhf.optimizer):
        optimizer.warmup_updates = 0
    config.sft.checkpoint_every = config.reward_model.checkpoint_every = (
        config.rlhf.checkpoint_every
    ) = 1
    config.comparisons.num_train = config.comparisons.num_heldout = (
        config.comparisons.prompts_per_batch
    ) = 8
    config.reward_model.num_updates, config.reward_model.pairs_per_update = 2, 4
    config.reward_model.num_micro_batches, config.reward_model.standardize_prompts = 1, 8
    config.rlhf.prompts_per_update, config.rlhf.num_micro_batches, config.rlhf.log_samples = 2, 1, 2
    config.rlhf.total_prompts = 2 * config.rlhf.prompts_per_update * config.rlhf.num_minibatches
    config.rlhf.evaluate_every = 0
    config.evaluate.num_prompts = config.evaluate.num_prompts_between = (
        config.evaluate.prompts_per_batch
    ) = 4
    config.evaluate.max_completion_tokens = 0
    config.best_of_n, config.best_of_n_prompts = (1, 2), 4
    return config
