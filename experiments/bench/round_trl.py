"""The peer's side of the round benchmark: OnlineDPOTrainer of TRL, with a reward function on text."""

import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from experiments.bench import measure, peers, rounds

MANY_ROUNDS = 300


class Turns(TrainerCallback):
    """Waits for its turn before a round, and says how long a round took, its data loading included."""

    def __init__(self) -> None:
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rounds.say({"ready": True})
        self.wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rounds.say({"seconds": time.perf_counter() - self.began})
        self.wait(control)

    def wait(self, control: Any) -> None:
        if not sys.stdin.readline():
            control.should_training_stop = True
        self.began = time.perf_counter()


def tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words, split at spaces."""
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: index for index, word in enumerate(rounds.words(vocab_size))}, "<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def judge(completions: list[str], **_: Any) -> list[float]:
    return rounds.reward(completions)


def main() -> None:
    shape = rounds.SHAPES[sys.argv[1]]
    policy, reference = (peers.model(shape.preset, "sdpa", shape.vocab_size) for _ in range(2))
    vocab_size = policy.config.vocab_size
    words = rounds.words(vocab_size)
    tokens = [
        row
        for index in range(MANY_ROUNDS)
        for row in rounds.prompt_tokens(shape, vocab_size, index)
    ]
    data = Dataset.from_dict(
        {"prompt": [" ".join(words[token] for token in row) for row in tokens]}
    )
    with tempfile.TemporaryDirectory() as folder:
        config = OnlineDPOConfig(
            output_dir=folder,
            per_device_train_batch_size=shape.num_prompts,
            max_steps=MANY_ROUNDS,
            max_new_tokens=shape.new,
            temperature=1.0,
            beta=rounds.BETA,
            learning_rate=rounds.LEARNING_RATE,
            logging_steps=MANY_ROUNDS,
            **measure.TRL_ON_CPU,
        )
        trainer = OnlineDPOTrainer(
            model=policy,
            ref_model=reference,
            reward_funcs=judge,
            args=config,
            train_dataset=data,
            processing_class=tokenizer(vocab_size),
            callbacks=[Turns()],
        )
        torch.set_num_threads(measure.NUM_THREADS)
        trainer.train()
    rounds.say({"peak_megabytes": measure.peak_resident_megabytes()})


if __name__ == "__main__":
    main()
