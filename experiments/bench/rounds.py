"""Shared parts of both sides of the round benchmark: shapes, prompts, the reward, and its protocol.

A side runs in its own process and does one whole round for each line that it is sent; it answers
with the seconds it took, and at the end with its peak resident memory.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EOS, PAD = 2, 0
BETA, LEARNING_RATE = 0.1, 1e-5


@dataclass(frozen=True)
class Shape:
    """A round: prompts, two samples each. `vocab_size` where the preset leaves it open.

    `num_micro_batches` is ours: fewer activations are faster where they no longer go through main
    memory, and take less of it.
    """

    preset: str
    num_prompts: int
    prompt: int
    new: int
    vocab_size: int = 0
    num_micro_batches: int = 1


SHAPES = {
    "quickstart 32x2x16": Shape("quickstart", 32, 16, 16, vocab_size=128),
    "tiny 32x2x32": Shape("tiny", 32, 64, 32, num_micro_batches=4),
    "tiny 32x2x128": Shape("tiny", 32, 64, 128, num_micro_batches=8),
}


def words(vocab_size: int) -> list[str]:
    """The word of each token."""
    return ["<pad>", "<unk>", "<eos>", *(f"w{index}" for index in range(3, vocab_size))]


def prompt_tokens(shape: Shape, vocab_size: int, round_index: int) -> np.ndarray:
    """The prompts of a round, int32 `[P, Q]`, none padded."""
    random = np.random.default_rng([0, round_index])
    return random.integers(3, vocab_size, (shape.num_prompts, shape.prompt), dtype=np.int32)


def reward(completions: Sequence[str]) -> list[float]:
    """Number of different words in a completion: cheap, and rarely the same for both samples of a
    prompt.
    """
    return [float(len(set(completion.split()))) for completion in completions]


def serve(one_round: Callable[[], None]) -> None:
    """A round for each line of standard input, until it ends; `one_round` returns when all of its
    work is done.
    """
    say({"ready": True})
    for _ in sys.stdin:
        began = time.perf_counter()
        one_round()
        say({"seconds": time.perf_counter() - began})


def say(message: dict[str, float | bool]) -> None:
    """One line to the benchmark."""
    print(json.dumps({"to": "benchmark", **message}), flush=True)
