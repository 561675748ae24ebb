"""The loop of a run over the events of its rounds, in memory: nothing is written to disk."""

import dataclasses
import os
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rlhf_jax.algorithms.api import REFERENCE_SCORES
from rlhf_jax.devices import mesh as meshes
from rlhf_jax.face.calls import completion_tokens, within
from rlhf_jax.face.components import for_schedule
from rlhf_jax.face.components import tokenizer as make_tokenizer
from rlhf_jax.face.prompts import own
from rlhf_jax.face.reward import Reward
from rlhf_jax.face.settings import filled
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.rounding import held
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import ProgramSpec
from rlhf_jax.runtime.program import Reward as ProgramReward
from rlhf_jax.runtime.synchronous import Event, LoopMonitor
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import LONGEST, Lengths, Workspace
from rlhf_jax.stages.inflight import loops
from rlhf_jax.stages.settings import rlhf as rlhf_settings
from rlhf_jax.tasks import api
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import encoding
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Algorithm, Params, Samples
from rlhf_jax.updating import OptimizerConfig

UNUSED = (
    "total_prompts",  # num_rounds says it
    "evaluate_every",
    "evaluate_at",
    "profile_updates",
    "checkpoint_every",
    "keep_checkpoints",
    "log_samples",
    "ledger",
    "ledger_gold",
)
"""Keys of a config's `rlhf` node that mean nothing to a loop whose reader evaluates and saves."""

GivenOptimizer = optax.GradientTransformation | OptimizerConfig | Mapping[str, object] | None
"""An optimizer, or its settings, or some of them over the defaults."""


def run(
    model: Model,
    task: object,
    algorithm: Algorithm,
    reward: Reward,
    *,
    num_rounds: int,
    lag: int = rlhf_settings.Config.lag,
    tokenizer: Tokenizer | None = None,
    params: Params | None = None,
    optimizer: GivenOptimizer = None,
    critic_optimizer: GivenOptimizer = None,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    mesh: Mesh | None = None,
    monitor: LoopMonitor | None = None,
    **settings: object,
) -> Generator[Event, None, None]:
    """Trains a policy, and yields what happens as it happens.

    The events are `Sampled`, `Scored`, `Updated` and `RoundEnd` of `rlhf_jax.runtime.synchronous`.
    Their numbers are those of the RLHF stage with the same seed and settings, from the same params.
    The next update donates the states of an event: copy what is to be kept.

    Args:
      model: of the policy.
      task: of `rl.task`; prompts are those of its train split, in the order of `seed`.
      algorithm: of `rl.algorithm`. The "auto" of its correction is resolved for the lag.
      reward: of `rl.reward`.
      num_rounds: rounds, of `prompts_per_update * num_minibatches` prompts each.
      lag: rounds that the sampler is behind; 0 is on-policy.
      tokenizer: None: characters or words of the task's vocabulary, or bytes where it is open.
      params: that the policy begins at, and the frozen reference; they are copied. None: fresh ones
        of the seed.
      optimizer: an optax transformation, or keys of `updating.OptimizerConfig`; None: its defaults.
      critic_optimizer: the same for the critic.
      seed: of prompts, samples and fresh params.
      max_prompt_tokens: positions of a prompt; None: those of the task's longest.
      max_tokens: positions of a completion; None: those of the task's longest reference.
      mesh: devices that the run uses; None: the first one.
      monitor: gets the timeline of the run, and can ask it to stop at the end of a round.
      **settings: keys of a config's `rlhf` node: prompts_per_update, num_minibatches, num_epochs,
        samples_per_prompt, temperature, loop ("synchronous" or "asynchronous"), clock ("exact" or
        "bounded"), version_schedule, scoring and others.

    Returns:
      A generator of events.

    Raises:
      Refusal: at once, for a key or a value that is not accepted, and for settings that contradict
        each other, the model or the devices. Nothing is compiled before.

    Example:
      >>> import rlhf_jax as rl
      >>> task = rl.task("addition", limit=10)
      >>> model = rl.model("gpt_neox", "quickstart", vocab_size=14, num_layers=1)
      >>> algorithm, reward = rl.algorithm("rloo"), rl.reward("exact_match", task)
      >>> events = rl.run(model, task, algorithm, reward, num_rounds=1, prompts_per_update=2)
      >>> [type(event).__name__ for event in events]
      ['Sampled', 'Scored', 'Updated', 'RoundEnd']
    """
    if unused := sorted(settings.keys() & set(UNUSED)):
        raise Refusal(
            f"rl.run has no key {unused[0]!r}: its reader evaluates, saves and writes; accepted: "
            "num_rounds=..."
        )
    config = _config(settings, num_rounds, lag, optimizer, critic_optimizer)
    inner, devices = own(task), meshes.make_mesh(meshes.Config()) if mesh is None else mesh
    if not isinstance(reward, Reward):
        raise Refusal(f"reward is {reward!r:.60}; accepted: what rl.reward(...) returns")
    tokenizer = within(default_tokenizer(inner) if tokenizer is None else tokenizer, model)
    lengths = _lengths(inner, tokenizer, max_prompt_tokens, max_tokens)
    if hasattr(inner, "fitted"):
        inner = inner.fitted(partial(encoding.count_tokens, tokenizer), lengths.max_prompt_tokens)
    workspace = Workspace(
        Path(os.devnull), seed, inner, tokenizer, model, devices, lengths
    )  # nothing is written
    clock = config.schedule()
    algorithm = for_schedule(
        algorithm,
        lag=config.lag,
        scheduled=bool(clock.version_schedule) or max(clock.sync_every, clock.buffer_rounds) > 1,
        exact_sampler=model.dtype == "float32" and config.publish_dtype == "float32",
        seed=seed,
    )
    if REFERENCE_SCORES in algorithm.needs:
        raise Refusal(
            f"{algorithm.name} needs stored scores of the reference policy's samples, which rl.run "
            "does not make; accepted: a run of the command, whose stage prompt_values makes them, or "
            "rl.score(..., reference_score_PS=...) in a loop of your own"
        )
    rlhf_settings.check(config, algorithm, devices)
    return _events(
        workspace, config, algorithm, reward, params, (optimizer, critic_optimizer), monitor
    )


def _config(
    settings: dict[str, object],
    num_rounds: int,
    lag: int,
    optimizer: GivenOptimizer,
    critic_optimizer: GivenOptimizer,
) -> rlhf_settings.Config:
    """The settings of the RLHF stage.

    Raises Refusal for a key or a value that it does not accept.
    """
    values = settings | {"lag": lag}
    for key, given in (("optimizer", optimizer), ("critic_optimizer", critic_optimizer)):
        if given is not None and not isinstance(given, optax.GradientTransformation):
            values[key] = given
    plain = filled(rlhf_settings.Config, rlhf_settings.Config(), values, "rl.run")
    if num_rounds < 1:
        raise Refusal(f"num_rounds is {num_rounds}; accepted: 1 or more")
    return dataclasses.replace(
        plain, total_prompts=num_rounds * plain.num_minibatches * plain.prompts_per_update
    )


def default_tokenizer(task: api.Task) -> Tokenizer:
    """Characters where every symbol of a task's vocabulary is one, else words; bytes where the
    vocabulary is open.
    """
    if task.vocabulary is None:
        return make_tokenizer("bytes", task)
    return make_tokenizer(
        "characters" if all(len(symbol) == 1 for symbol in task.vocabulary) else "words", task
    )


def _lengths(
    task: api.Task, tokenizer: Tokenizer, max_prompt_tokens: int | None, max_tokens: int | None
) -> Lengths:
    """Positions of prompts and completions.

    Raises Refusal where neither the caller nor the task says them.
    """
    if max_prompt_tokens is None:
        texts = list(reading.prompts(task, "train"))
        max_prompt_tokens = max(encoding.count_tokens(tokenizer, texts))
    given = {
        "max_prompt_tokens": max_prompt_tokens,
        "max_completion_tokens": completion_tokens(max_tokens, tokenizer),
    }
    for name, value in given.items():
        if not 1 <= value <= LONGEST:
            raise Refusal(f"{name} is {value}; accepted: 1 to {LONGEST}")
    return Lengths(**given)


def _events(
    workspace: Workspace,
    config: rlhf_settings.Config,
    algorithm: Algorithm,
    reward: Reward,
    params: Params | None,
    optimizers: tuple[Any, Any],
    monitor: LoopMonitor | None,
) -> Generator[Event, None, None]:
    """The events of the loop that a config names."""
    fresh = jax.jit(workspace.model.init)(workspace.key("init")) if params is None else params
    reference = workspace.on_mesh(fresh)
    spec = _setup(workspace, config, algorithm, reward, reference, optimizers)
    program = loops.make_program(config, spec, workspace.held(reference))
    program.check_memory(asynchronous=config.loop == "asynchronous")
    program.compile()
    states = program.init(reference)
    del fresh, params, reference  # the states are copies
    if config.streams:
        yield from loops.looped(program, config, states, monitor)
    elif config.loop == "synchronous":
        yield from synchronous.run(program, states, 0, {}, monitor)
    else:
        limits = config.deadline_seconds, config.device_call_seconds
        yield from asynchronous.run(program, states, 0, {}, monitor, *limits)


def _setup(
    workspace: Workspace,
    config: rlhf_settings.Config,
    algorithm: Algorithm,
    reward: Reward,
    reference: Params,
    optimizers: tuple[Any, Any],
) -> ProgramSpec:
    """The setup of the RLHF stage, with the reward and the optimizers that a caller gave."""
    host = rlhf.host_scores(workspace, reward.judges) if reward.judges else None
    params = reward.params
    if reward.network is not None and params is not None:
        params = held(reward.network, params)
    judged = ProgramReward(
        model=reward.model,
        params=params,
        network=reward.network,
        host=host and (_only(host) if reward.is_plain else host),
        mean=reward.mean,
        std=reward.std,
        name=reward.name,
        terms=() if reward.is_plain else reward.terms,
    )
    # A critic begins as the reward's network where there is one: an array program is none.
    whole = dataclasses.replace(judged, params=reward.params)
    setup = rlhf.make_spec(
        workspace, config, algorithm, whole if reward.network else ProgramReward(), reference
    )  # fmt: skip
    critic = setup.critic
    if critic is not None and reward.network is not None:
        critic = dataclasses.replace(critic, model=reward.network)
    policy, of_critic = (
        given if isinstance(given, optax.GradientTransformation) else None for given in optimizers
    )
    if critic is not None and of_critic is not None:
        critic = dataclasses.replace(critic, optimizer=of_critic)
    return dataclasses.replace(
        setup, reward=judged, critic=critic, optimizer=policy or setup.optimizer
    )


def _only(host: Callable[[Samples], dict[str, np.ndarray]]) -> Callable[[Samples], np.ndarray]:
    """The scores of the one reward that there is."""

    def scores(samples: Samples) -> np.ndarray:
        (values,) = host(samples).values()
        return values

    return scores
