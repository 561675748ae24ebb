"""Rewards by the name that a config takes: on text, learned, or a sum of both; and their scores of
samples.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlhf_jax import registry
from rlhf_jax.face.prompts import SeekableTask, TaskPrompts, own
from rlhf_jax.face.settings import filled
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import value_head
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.rewards.api import LEARNED, ModelReward, Term
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.rewards.common.host_rewards import HostJudge
from rlhf_jax.rewards.common.terms import is_plain, parse
from rlhf_jax.tasks import api
from rlhf_jax.text import encoding
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Params, Samples


@dataclass(frozen=True)
class Reward:
    """A reward, or a weighted sum of several, and the task whose prompts it is asked about.

    Example: `rl.reward("exact_match", task)` has one term and one judge, both labelled
    "exact_match".
    """

    name: str
    terms: tuple[Term, ...]
    judges: Mapping[str, HostJudge]  # rewards on text, by label
    task: api.Task | None = None
    model: ModelReward | None = None  # the term named `learned`, or an array program
    params: Params | None = None
    network: ValueModel | None = None
    mean: float = 0.0  # of the model's raw scores
    std: float = 1.0

    @property
    def is_plain(self) -> bool:
        """True for one reward of weight 1, whose scores are used as they are."""
        return is_plain(self.terms)


def reward(
    name: object,
    task: object = None,
    /,
    *,
    model: Model | ValueModel | None = None,
    params: Params | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    **settings: object,
) -> Reward:
    """Returns a reward.

    Args:
      name: what a config takes: a file of `rlhf_jax/rewards/`, the dotted path of a module or a
        function, the path of a file, or a sum such as "learned + 0.1 * my_lab.rewards:brevity".
        Also a function: of (params, samples), an array program that returns float32 `[B]`; or of
        completions and any of prompts, finished, records (see `rewards/api.py`).
      task: gives the prompts and the fields of their rows, and judges where the reward asks it.
      model: of the reward named `learned`: a decoder with a value head, or the decoder.
      params: of that model, or of an array program.
      mean: of the model's raw scores on samples of the SFT policy, which its scores are
        standardised by.
      std: their standard deviation.
      **settings: keys of the reward's `Config`; for a sum, a dict for each label.

    Raises:
      Refusal: for a name that means no reward, for a key that it does not accept, for `learned`
        without model and params, and for a task that the reward cannot judge.
      RewardError: for what the reward's own code raises.

    Example:
      >>> import rlhf_jax as rl
      >>> rl.reward("exact_match", rl.task("addition")).name
      'exact_match'
    """
    inner, network = own(task), None
    if callable(name):
        return _of_function(name, inner, params, settings)
    if not isinstance(name, str):
        raise Refusal(f"{name!r} is no reward; accepted: a name, a sum of names, or a function")
    terms = parse(name)
    if LEARNED in [term.name for term in terms]:
        if model is None or params is None:
            raise Refusal(
                f"the reward {name!r} has a model; accepted: rl.reward({name!r}, task, model=..., "
                "params=...)"
            )
        network = model if isinstance(model, ValueModel) else value_head.make(model)
    labels = [term.label for term in terms]
    by_label = settings if len(terms) > 1 else {labels[0]: settings}
    if unknown := sorted(by_label.keys() - set(labels)):
        raise Refusal(
            f"the reward {name!r} has no term {unknown[0]!r}; accepted: {', '.join(labels)}"
        )
    judges = {}
    for term in terms:
        kind = registry.settings("rewards", term.name)
        changes = by_label.get(term.label, {})
        if not isinstance(changes, Mapping):
            raise Refusal(
                f"the term {term.label} of the reward {name!r} was given {changes!r}; accepted: a "
                "dict of its settings"
            )
        config = filled(kind, None, changes, f"reward {term.label}")
        if term.name != LEARNED:
            judges[term.label] = host_rewards.make(term.name, inner, config)
    network_reward = None if network is None else learned.make(network)
    return Reward(
        name,
        terms,
        judges,
        inner,
        network_reward,
        params if network is not None else None,
        network,
        mean,
        std,
    )


def _of_function(
    function: Callable[..., Any],
    task: api.Task | None,
    params: Params | None,
    settings: Mapping[str, object],
) -> Reward:
    """The reward that a function is.

    Raises Refusal for one that takes other parameters, and for settings.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if settings:
        raise Refusal(
            f"the reward {name} is a function, which has no {', '.join(settings)}; accepted: no "
            "settings"
        )
    terms = (Term(name, name),)
    if tuple(inspect.signature(function).parameters) == ("params", "samples"):
        return Reward(name, terms, {}, task, function, {} if params is None else params)
    judge = HostJudge(name, function, host_rewards.parameters(name, function), None)
    return Reward(name, terms, {name: judge}, task)


def host_scores(
    reward: Reward, samples: Samples, tokenizer: Tokenizer, prompts: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Scores of the rewards on text, float32 `[B]` by label.

    Args:
      reward: whose judges are asked.
      samples: B samples.
      tokenizer: that the samples were encoded with.
      prompts: the text of each prompt, `[P]`; None: the reward's task gives it by the ordinal.

    Raises:
      Refusal: where a judge asks for prompts or rows that are not known.
      RewardError: for what a judge raises, and for a result that is not one finite number a
        completion.
    """
    on_host = jax.device_get(samples)
    completions = encoding.decode_completions(
        on_host.tokens_BC,
        on_host.mask_BC,
        on_host.finished_B,
        tokenizer,
        on_host.prompt_tokens_BQ[:, -1],
    )
    records: list[Mapping[str, Any]] = []
    texts: list[str] = []
    if any(judge.takes != ("completions",) for judge in reward.judges.values()):
        given = _prompts(reward, on_host, tokenizer, prompts)
        repeated = np.repeat(np.arange(len(given)), samples.samples_per_prompt).tolist()
        texts = [given[place] for place in repeated]
        if any(judge.wants_records for judge in reward.judges.values()):
            if not isinstance(given, TaskPrompts):
                raise Refusal(
                    f"the reward {reward.name} asks for records; accepted: "
                    "prompts=task.prompts(...)"
                )
            records = [given.records[place] for place in repeated]
    finished = on_host.finished_B.tolist()
    return {label: judge(texts or [""] * len(completions), completions, finished, records, "")
            for label, judge in reward.judges.items()}  # fmt: skip


def _prompts(
    reward: Reward, samples: Samples, tokenizer: Tokenizer, prompts: Sequence[str] | None
) -> Sequence[str]:
    """The text of each prompt, `[P]`.

    Raises Refusal for another number of them, or where they are not known.
    """
    group = samples.samples_per_prompt
    ordinals = np.asarray(samples.ordinal_B)[::group].tolist()
    if prompts is not None:
        if len(prompts) != len(ordinals):
            raise Refusal(
                f"{len(prompts)} prompts were given for {len(ordinals)} groups of samples; "
                "accepted: one for each"
            )
        return prompts
    if reward.task is not None:
        mask_PQ = np.asarray(samples.prompt_mask_BQ)[::group]
        tokens_PQ = np.asarray(samples.prompt_tokens_BQ)[::group]
        wanted = [tokens[mask].tolist() for tokens, mask in zip(tokens_PQ, mask_PQ, strict=True)]
        for split in ("train", "heldout"):
            found = _at(reward.task, split, ordinals)
            if (
                found is not None
                and [encoding.prompt_ids(text, tokenizer) for text in found] == wanted
            ):
                return found
    why = (
        "its samples are of no task"
        if reward.task is None
        else "those of the samples are not its task's at their ordinals"
    )
    raise Refusal(
        f"the reward {reward.name} asks for prompts, and {why}; accepted: prompts=texts, one for "
        "each group"
    )


def _at(task: api.Task, split: api.Split, ordinals: Sequence[int]) -> TaskPrompts | None:
    """The prompts at places of a task's stream; None for an empty split."""
    if not task.num_prompts(split):
        return None
    first, last = min(ordinals), max(ordinals)
    stream = SeekableTask(task).prompts(split, first, last + 1 - first)
    return TaskPrompts(
        task, split, first, tuple(stream.indices[ordinal - first] for ordinal in ordinals)
    )
