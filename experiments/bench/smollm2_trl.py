"""The peer of configs/smollm2/sums.py: GRPO of TRL with a LoRA adapter of PEFT, on the same model
and prompts.

The prompts are those of the recipe's rounds, in their order, and the task's own judge is the
reward. Rows of a round, lengths, temperature, learning rate, adapter and the absence of a KL term
are the recipe's. A newline ends a completion, as there. One JSON line has the seconds of
every round but the first, their median, the tokens sampled per second, the peak resident memory and
the share of right completions of every round.

    python -m experiments.bench.smollm2_trl --folder=models/smollm2-135m --rounds=100

Our side is `rlhf-jax run smollm2/sums`: its metrics.jsonl has the same figures of every round.
Needs `pip install -e '.[bench]'`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.smollm2 import sums
from experiments.bench import measure
from rlhf_jax import build
from rlhf_jax.records.ledger import STAGE
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages


def recipe(folder: Path, seed: int) -> tuple[Workspace, Stages]:
    """The recipe's workspace and stages; nothing is trained."""
    config = sums.get_config()
    config.pretrained.sft, config.seed = str(folder), seed
    workspace, stages, _ = build.parts(config)
    return workspace, stages


class Rounds:
    """Seconds of each round, of the tokens that it sampled, and of its right completions."""

    def __init__(self, workspace: Workspace, eos_ids: Sequence[int]):
        self.task, self.eos_ids = workspace.task, frozenset(eos_ids)
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.right: list[float] = []
        self.began = 0.0

    def reward(
        self, prompts: list[str], completion_ids: list[list[int]], texts: list[str]
    ) -> list[float]:
        """The judge's scores of a round's completions; one without its end is not right."""
        finished = [not self.eos_ids.isdisjoint(ids) for ids in completion_ids]
        scores = [
            self.task.judge(prompt, text, ended)
            for prompt, text, ended in zip(prompts, texts, finished, strict=True)
        ]
        self.tokens.append(sum(map(len, completion_ids)))
        self.right.append(statistics.fmean(scores))
        return scores


def trainer(folder: Path, seed: int, rounds: int, scratch: str) -> tuple[Any, Rounds]:
    """TRL's trainer with the recipe's settings, and what it notes of its rounds."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    workspace, stages = recipe(folder, seed)
    settings = stages.rlhf
    group, prompts = settings.samples_per_prompt, settings.prompts_per_update
    stream = workspace.stream("train", STAGE)
    texts = stream.texts(0, rounds * prompts)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    eos_ids = workspace.tokenizer.eos_ids
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos_ids[0])
    noted = Rounds(workspace, eos_ids)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        kept = [[token for token in ids if token not in noted.eos_ids] for ids in completion_ids]
        return noted.reward(prompts, completion_ids, tokenizer.batch_decode(kept))

    class Turns(TrainerCallback):
        """Notes when a round begins and ends, its data loading included."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            noted.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            noted.seconds.append(now - noted.began)
            noted.began = now

    config = GRPOConfig(
        output_dir=scratch,
        per_device_train_batch_size=prompts * group,
        num_generations=group,
        max_steps=rounds,
        max_completion_length=workspace.lengths.max_completion_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        learning_rate=settings.optimizer.learning_rate,  # that of adapters already
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.optimizer.warmup_updates,
        max_grad_norm=settings.optimizer.max_grad_norm,
        loss_type="grpo",
        shuffle_dataset=False,
        logging_steps=rounds,
        seed=seed,
        generation_kwargs={"eos_token_id": list(eos_ids)},
        **measure.TRL_ON_CPU,
    )
    lora = workspace.lora
    adapter = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    made = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Turns()],
    )
    return made, noted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import torch

    load_average = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        made, noted = trainer(options.folder, options.seed, options.rounds, scratch)
        torch.set_num_threads(measure.NUM_THREADS)
        made.train()
    later = noted.seconds[1:] or noted.seconds
    case = {
        "case": "SmolLM2-135M-Instruct, 4-bit values: GRPO with LoRA on sums, TRL",
        "seed": options.seed,
        "round_seconds": [round(seconds, 3) for seconds in noted.seconds],
        "median_round_seconds": statistics.median(later),
        "tokens_per_second": sum(noted.tokens[1:] or noted.tokens) / sum(later),
        "peak_megabytes": measure.peak_resident_megabytes(),
        "right": [round(share, 4) for share in noted.right],
    }
    measure.report("smollm2_trl", [case], load_average, options.output)


if __name__ == "__main__":
    main()
