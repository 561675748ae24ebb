"""The compiled calls of a round: generate, score, credit, update, publish; both loops call this and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rlhf_jax import sample, score
from rlhf_jax.models.api import Model
from rlhf_jax.rewards.api import ModelReward
from rlhf_jax.runtime import sharding
from rlhf_jax.runtime.clock import Clock
from rlhf_jax.runtime.publish import make_publish
from rlhf_jax.types import Algorithm, Array, Batch, Params, Prompts, Samples, Scores, TrainState
from rlhf_jax.update import init_state, policy_objective, train_step


@dataclass(frozen=True)
class Reward:
    """What judges, and its unit: `model` with its `params`, or `host` on decoded samples; standardised by mean and std."""

    model: ModelReward | None = None
    params: Params = None
    host: Callable[[Samples], np.ndarray] | None = None
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Setup:
    """What a program is made of. `prompts(round)` gives the round's prompts; keys are functions of `seed` and purpose."""

    model: Model
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    sampling: sample.Config
    scoring: score.Config
    reward: Reward
    clock: Clock
    mesh: Mesh
    prompts: Callable[[int], Prompts]
    key: Array
    seed: int
    eos_id: int
    pad_id: int
    publish_dtype: str = "float32"
    num_micro_batches: int = 1


class Program:
    """The calls of one round, compiled for a mesh. Methods only dispatch: arrays stay on the device."""

    def __init__(self, setup: Setup, reference_params: Params):
        """`reference_params` are the frozen reference, laid out as params are on the mesh."""
        self.setup = setup
        self.reference_params = reference_params
        model, mesh = setup.model, setup.mesh
        shapes = jax.eval_shape(partial(init_state, optimizer=setup.optimizer), reference_params)
        self.state_shardings = sharding.state_shardings(model, shapes, setup.optimizer, mesh)
        self.state_shapes = shapes
        of_params, everywhere, rows = self.state_shardings.params, sharding.replicated(mesh), sharding.rows(mesh)
        draw = partial(sample.sample, model=model, config=setup.sampling, eos_id=setup.eos_id, pad_id=setup.pad_id)
        samples_out = sharding.row_shardings(self._sample_shapes(draw), mesh)
        self._generate = jax.jit(draw, out_shardings=samples_out)
        self._logprobs = jax.jit(partial(score.sample_logprobs, model=model), out_shardings=rows)
        self._reward = jax.jit(setup.reward.model, out_shardings=rows) if setup.reward.model else None
        self._credit = jax.jit(self._credit_rows)
        self._take = jax.jit(take_units, static_argnames=("unit_rows",))
        self._publish = make_publish(of_params, setup.publish_dtype)
        step = partial(
            train_step,
            objective=policy_objective(setup.algorithm.losses["policy"], model, self.unit_rows),
            optimizer=setup.optimizer,
            aggregation=setup.algorithm.aggregation,
            unit_rows=self.unit_rows,
            num_micro_batches=setup.num_micro_batches,
        )
        self._update = jax.jit(step, donate_argnums=0, out_shardings=(self.state_shardings, everywhere))
        self._init = jax.jit(self._fresh_state, out_shardings=self.state_shardings)

    @property
    def unit_rows(self) -> int:
        return self.setup.algorithm.unit_rows(self.setup.sampling.samples_per_prompt)

    def init(self, params: Params) -> TrainState:
        """A fresh state at version 0 from a copy of `params`: the caller's arrays survive the first donated step."""
        return self._init(params)

    def generate(self, params: Params, round_index: int, version: int) -> Samples:
        """Samples a round with published params."""
        prompts = self.setup.prompts(round_index)
        prompts = jax.device_put(prompts, sharding.row_shardings(prompts, self.setup.mesh))
        return self._generate(params, prompts, self.setup.key, np.int32(version))

    def score(self, state: TrainState, samples: Samples) -> tuple[Scores, Batch]:
        """What every role says of the samples, and the rows to train on."""
        reward, needs = self.setup.reward, self.setup.algorithm.needs
        reference = self._logprobs(self.reference_params, samples) if "reference" in needs else None
        proximal = self._logprobs(state.params, samples) if "proximal" in needs else None
        if self._reward is not None:
            raw = self._reward(reward.params, samples)
        else:
            assert reward.host is not None
            raw = jax.device_put(reward.host(samples), sharding.rows(self.setup.mesh))
        return self._credit(samples, raw, reference, proximal)

    def minibatch(self, batch: Batch, round_index: int, update_in_round: int) -> Batch:
        """Rows of one update: epochs outside, minibatches inside.

        The first epoch goes through the prompts in order, so that update k trains on the same prompts whatever
        `num_minibatches` is; later epochs are reshuffled by units.
        """
        clock = self.setup.clock
        if clock.updates_per_round == 1:
            return batch
        epoch, part = divmod(update_in_round, clock.num_minibatches)
        num_units = batch.tokens_RC.shape[0] // self.unit_rows
        order = np.arange(num_units)
        if epoch:
            order = np.random.default_rng([self.setup.seed, round_index, epoch]).permutation(num_units)
        size = num_units // clock.num_minibatches
        taken = self._take(batch, order[part * size : (part + 1) * size].astype(np.int32), unit_rows=self.unit_rows)
        return jax.device_put(taken, sharding.row_shardings(taken, self.setup.mesh))

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        """One update; `state` is donated."""
        return self._update(state, batch)

    def publish(self, state: TrainState) -> Params:
        """Params that the sampler owns."""
        return self._publish(state.params)

    def _fresh_state(self, params: Params) -> TrainState:
        return init_state(jax.tree.map(jax.numpy.copy, params), self.setup.optimizer)

    def _credit_rows(
        self, samples: Samples, raw_B: Array, reference_BC: Array | None, proximal_BC: Array | None
    ) -> tuple[Scores, Batch]:
        setup = self.setup
        scores = score.make_scores(raw_B, samples.finished_B, setup.reward.mean, setup.reward.std, setup.scoring)
        scores = scores.replace(  # type: ignore[attr-defined]
            reference_logprob_BC=reference_BC, proximal_logprob_BC=proximal_BC
        )
        batch = setup.algorithm.credit(samples, scores)
        shardings = sharding.row_shardings(batch, setup.mesh)
        return scores, jax.lax.with_sharding_constraint(batch, shardings)

    def _sample_shapes(self, draw: Callable[..., Samples]) -> Samples:
        prompts = jax.eval_shape(lambda: self.setup.prompts(0))
        return jax.eval_shape(draw, self.reference_params, prompts, self.setup.key, np.int32(0))


def take_units(batch: Batch, units_U: Array, *, unit_rows: int) -> Batch:
    """The rows of the given units, in their order; scalars as they are."""

    def take(array: Array) -> Array:
        if array.ndim == 0:
            return array
        return array.reshape(-1, unit_rows, *array.shape[1:])[units_U].reshape(-1, *array.shape[1:])

    return jax.tree.map(take, batch)
