"""Rewards: an array program of a model (`learned`), or a function on decoded text. How to write
your own.

A reward is a plain function of some of these, chosen by the names of its parameters:

    prompts       the prompt of each completion, text
    completions   the completions, text before the EOS
    finished      False where a completion was cut because it had no EOS
    records       the fields of each prompt's row, a dict: "references", "answer" where there is one, and for a jsonl file every
                  other column of the row (`tasks.api.Task.record`)
    config        the reward's settings, where it has some

Three parameters of other names are (prompts, completions, finished). All are sequences of one entry
a completion. The result is one finite number a completion: a list, a tuple, an array of numpy or
JAX, of numbers or booleans.

    def brevity(completions):                                       --config.reward=my_lab.rewards:brevity
        return [-len(text.split()) for text in completions]

    def exact(completions, records):                                --config.reward=rewards/mine.py:exact
        return [text.strip() == row["answer"] for text, row in zip(completions, records)]

A module with `make(task, config) -> reward` makes one from the task and from its settings, a frozen
dataclass `Config` whose values are the config's `reward_settings.<label>.<key>`. The label is the
last part of the reward's name.

The reward of a run is one name, or a sum of several with weights: `--config.reward="learned + 0.1 *
my_lab.rewards:brevity"`. A reward that is no function of its inputs, such as a judge behind HTTP or
one that samples, says so:

    @asked_once
    def judge(prompts, completions):                                 asks a server

Its answers are kept in the run's directory (`records/answers.py`) by digest of prompt and
completion, and of `finished` and the row's record where the function takes them. A question that
has an answer there is not asked again: not for the same text later in the run, not when the run
goes on from a checkpoint, and not in a run that replays it. Such a run is repeated to the bit. The
mark is an attribute, `judge.asked_once = True`: a factory, or the function that it makes, has it.
Of several processes the first asks and tells the others.

A learned reward is standardised before it is weighted (`reward_model.standardize`). Every term is
recorded by its label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from rlhf_jax.types import Array, Params, Samples

LEARNED = "learned"
"""The one reward that is a model."""


class ModelReward(Protocol):
    """A role: an array program, placed like any call."""

    def __call__(self, params: Params, samples: Samples) -> Array:
        """Raw scores `[B]`, float32."""
        ...


HostReward = Callable[[Sequence[str], Sequence[str], Sequence[bool]], np.ndarray]
"""(prompts, completions, finished) -> raw scores [B], float32: a reward of this package."""

OwnReward = Callable[..., Any]
"""A reward as a user writes it: parameters by name, a result that `host_rewards.numbers` checks."""


F = TypeVar("F", bound=Callable[..., Any])


def asked_once(function: F) -> F:
    """Marks a reward whose answers are kept, because it is no function of its inputs.

    See the module.
    """
    function.asked_once = True  # type: ignore[attr-defined]
    return function


def is_asked_once(function: Callable[..., Any]) -> bool:
    """True where a function, or the object that is called, is marked so."""
    return bool(getattr(function, "asked_once", False))


@dataclass(frozen=True)
class Term:
    """One reward of a run's sum.

    Example: "0.1 * my_lab.rewards:brevity" is Term(name="my_lab.rewards:brevity", label="brevity",
    weight=0.1).
    """

    name: str  # as `registry.find` takes it
    label: str  # in figures and in `reward_settings`
    weight: float = 1.0
