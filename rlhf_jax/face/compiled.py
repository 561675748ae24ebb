"""Compiled functions of the calls, one for each value of their arguments.

`jax.jit` keeps its programs by the function that it was given, so each function is kept here.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import optax

from rlhf_jax import sampling, scoring, updating
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import value_head
from rlhf_jax.ops.scalars import Scalars
from rlhf_jax.types import (
    Aggregation,
    Array,
    Batch,
    Metrics,
    Params,
    Samples,
    Scores,
    TrainState,
)
from rlhf_jax.updating import critic_objective, policy_objective, train_step

CACHED = 64
"""Compiled functions that are kept of each call: a model, an optimizer and a setting each."""


Optimizer = optax.GradientTransformation


@lru_cache(CACHED)
def init_params(model: Model) -> Callable[[Array], Params]:
    return jax.jit(model.init)


@lru_cache(CACHED)
def init_state(optimizer: Optimizer) -> Callable[[Params], TrainState]:
    return jax.jit(partial(updating.init_state, optimizer=optimizer))


@lru_cache(CACHED)
def sampler(
    model: Model, config: sampling.Config, eos_ids: tuple[int, ...], pad_id: int
) -> Callable[..., Samples]:
    """`sampling.sample`, compiled, of params, prompts and a key.

    Args:
      model: of the params.
      config: of the sampling.
      eos_ids: tokens that end a completion.
      pad_id: the token after the end.
    """
    return jax.jit(
        partial(sampling.sample, model=model, config=config, eos_id=eos_ids, pad_id=pad_id)
    )


@lru_cache(CACHED)
def forward(need: str, model: Model) -> Callable[[Params, Samples], Array]:
    if need == "value":
        return jax.jit(partial(scoring.sample_values, model=value_head.make(model)))
    if need == "gradient_energy":
        return jax.jit(partial(scoring.sample_gradient_energy, model=model))
    return jax.jit(partial(scoring.sample_logprobs, model=model))


@lru_cache(CACHED)
def model_scores(reward: Callable[..., Array]) -> Callable[..., Array]:
    return jax.jit(reward)


@lru_cache(CACHED)
def scorer(
    units: tuple[tuple[str, float, float, float], ...], is_plain: bool, config: scoring.Config
) -> Callable[[Mapping[str, Array], Array], Scores]:
    """Raw scores by label to Scores; `units` are (label, weight, mean, standard deviation) of each
    term.
    """

    def make(raw: Mapping[str, Array], finished_B: Array) -> Scores:
        if is_plain:
            ((label, _, mean, std),) = units
            return scoring.make_scores(raw[label], finished_B, mean, std, config)
        of_terms = {label: (weight, mean, std) for label, weight, mean, std in units}
        return scoring.make_summed_scores(raw, of_terms, finished_B, config)

    return jax.jit(make)


@lru_cache(CACHED)
def update_step(
    role: str,
    loss: Callable[..., Any],
    model: Model,
    optimizer: Optimizer,
    aggregation: Aggregation,
    unit_rows: int,
    num_micro_batches: int,
    donate: bool,
) -> Callable[[TrainState, Batch, Mapping[str, Scalars]], tuple[TrainState, Metrics]]:
    if role == "policy":
        objective = policy_objective(loss, model, unit_rows)
    else:
        objective = critic_objective(loss, value_head.make(model), unit_rows)
    step = partial(
        train_step,
        objective=objective,
        optimizer=optimizer,
        aggregation=aggregation,
        unit_rows=unit_rows,
        num_micro_batches=num_micro_batches,
    )
    return jax.jit(step, donate_argnums=(0,) if donate else ())
