"""The compiled calls of a round: generate, score, credit, update, publish; both loops call this and nothing else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from rlhf_jax import sample, score
from rlhf_jax.runtime import memory, sharding
from rlhf_jax.runtime.checkpoint import abstract_like
from rlhf_jax.runtime.sampler import Sampler
from rlhf_jax.runtime.setup import Critic as Critic
from rlhf_jax.runtime.setup import Reward as Reward
from rlhf_jax.runtime.setup import Setup as Setup
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Params, Samples, Scores, States, TrainState
from rlhf_jax.update import critic_objective, init_state, policy_objective, train_step


class Program:
    """The calls of one round, compiled for a mesh. Methods only dispatch: arrays stay on the device."""

    def __init__(self, setup: Setup, reference_params: Params):
        """`reference_params` are the frozen reference, laid out as params are on the mesh.

        Raises ValueError for an algorithm whose critic the setup lacks.
        """
        self.setup = setup
        self.reference_params = reference_params
        model, mesh, algorithm = setup.model, setup.mesh, setup.algorithm
        if ("critic" in algorithm.losses) != (setup.critic is not None):
            raise ValueError(f"{algorithm.name} trains {', '.join(algorithm.losses)}; the critic is {setup.critic}")
        roles: dict[str, tuple[Any, optax.GradientTransformation]] = {"policy": (model, setup.optimizer)}
        if setup.critic is not None:
            roles["critic"] = (setup.critic.model, setup.critic.optimizer)
        self._roles = roles
        first = self._first_params(reference_params)
        self.state_shapes: States = {
            role: jax.eval_shape(partial(init_state, optimizer=optimizer), first[role])
            for role, (_, optimizer) in roles.items()
        }
        self.state_shardings: States = {
            role: sharding.state_shardings(role_model, self.state_shapes[role], optimizer, mesh)
            for role, (role_model, optimizer) in roles.items()
        }
        everywhere, rows = sharding.replicated(mesh), sharding.rows(mesh)
        draw = partial(sample.sample, model=model, config=setup.sampling, eos_id=setup.eos_id, pad_id=setup.pad_id)
        prompts = jax.eval_shape(lambda: setup.prompts(0))
        self._sampler = Sampler(
            draw, model, reference_params, prompts, setup.key, mesh, setup.sampler_slices, setup.publish_dtype
        )
        self._logprobs = jax.jit(partial(score.sample_logprobs, model=model), out_shardings=rows)
        self._reward = jax.jit(setup.reward.model, out_shardings=rows) if setup.reward.model else None
        self._credit = jax.jit(self._credit_rows)
        self._take = jax.jit(take_units, static_argnames=("unit_rows",))
        self._update = {
            role: jax.jit(
                self._step(role, role_model, optimizer),
                donate_argnums=0,
                out_shardings=(self.state_shardings[role], everywhere),
            )
            for role, (role_model, optimizer) in roles.items()
        }
        self._init = jax.jit(self._fresh_states, out_shardings=self.state_shardings)
        if setup.critic is not None:
            self._values = jax.jit(partial(score.sample_values, model=setup.critic.model), out_shardings=rows)

    def _step(self, role: str, model: Any, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        algorithm = self.setup.algorithm
        make_objective = policy_objective if role == "policy" else critic_objective
        return partial(
            train_step,
            objective=make_objective(algorithm.losses[role], model, self.block_rows),
            optimizer=optimizer,
            aggregation=algorithm.aggregation if role == "policy" else "token",
            unit_rows=self.block_rows,
            num_micro_batches=self.setup.num_micro_batches,
        )

    @property
    def block_rows(self) -> int:
        """Rows that stay together: all of a prompt's, so that the prompt is run once, or else the algorithm's unit."""
        return block_rows(self.setup.algorithm, self.setup.sampling.samples_per_prompt, self.setup.share_prompts)

    def check_memory(self, asynchronous: bool) -> None:
        """Raises ValueError where a device cannot hold its train states and the versions that the clock may keep alive."""
        states = memory.bytes_by_device(self.state_shapes, self.state_shardings)
        memory.check(
            states,
            self._sampler.version_bytes(),
            memory.live_versions(self.setup.clock, asynchronous),
            memory.free_bytes,
        )

    def compile(self) -> None:
        """Compiles a round's longest calls side by side, from shapes alone: the first update waits for the slowest of them,
        not for their sum. Each is found compiled when it is called."""
        shaped = partial(sharding.abstract_rows, mesh=self.setup.mesh)
        states = abstract_like(self.state_shapes, self.state_shardings)
        samples = shaped(self._sampler.shapes)
        _, batch = jax.eval_shape(self._credit_rows, samples, *self._judgement_shapes())
        size = batch.tokens_RC.shape[0] // self.setup.clock.num_minibatches
        minibatch = shaped(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]) if x.ndim else (), x.dtype), batch)
        )
        calls: list[tuple[Any, tuple[Any, ...]]] = self._sampler.calls(self.reference_params)
        calls += [(update, (states[role], minibatch)) for role, update in self._update.items()]
        if "reference" in self.setup.algorithm.needs:
            calls.append((self._logprobs, (self.reference_params, samples)))
        if self._reward is not None:
            calls.append((self._reward, (self.setup.reward.params, samples)))
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(lambda call: call[0].lower(*call[1]).compile(), calls))

    def _judgement_shapes(self) -> tuple[Any, Any, Any, Any]:
        rows, length = self._sampler.shapes.tokens_BC.shape
        needs = self.setup.algorithm.needs
        per_token = jax.ShapeDtypeStruct((rows, length), np.float32)
        reference, proximal, value = (
            per_token if need in needs else None for need in ("reference", "proximal", "value")
        )
        return jax.ShapeDtypeStruct((rows,), np.float32), reference, proximal, value

    def init(self, params: Params) -> States:
        """Fresh states at version 0, the policy's from a copy of `params`: arrays given survive the first donated step."""
        return self._init(self._first_params(params))

    def generate(self, params: Params, round_index: int, version: int) -> Samples:
        """Samples a round with published params."""
        return self._sampler.generate(params, self.setup.prompts(round_index), version)

    def score(self, states: States, samples: Samples) -> tuple[Scores, Batch]:
        """What every role says of the samples, and the rows to train on."""
        reward, needs = self.setup.reward, self.setup.algorithm.needs
        reference = self._logprobs(self.reference_params, samples) if "reference" in needs else None
        proximal = self._logprobs(states["policy"].params, samples) if "proximal" in needs else None
        value = self._values(states["critic"].params, samples) if "value" in needs else None
        if self._reward is not None:
            raw = self._reward(reward.params, samples)
        else:
            assert reward.host is not None
            raw = jax.device_put(reward.host(samples), sharding.rows(self.setup.mesh))
        return self._credit(samples, raw, reference, proximal, value)

    def minibatch(self, batch: Batch, round_index: int, update_in_round: int) -> Batch:
        """Rows of one update: epochs outside, minibatches inside.

        The first epoch goes through the prompts in order, so that update k trains on the same prompts whatever
        `num_minibatches` is; later epochs are reshuffled by blocks.
        """
        clock = self.setup.clock
        if clock.updates_per_round == 1:
            return batch
        epoch, part = divmod(update_in_round, clock.num_minibatches)
        num_units = batch.tokens_RC.shape[0] // self.block_rows
        order = np.arange(num_units)
        if epoch:
            order = np.random.default_rng([self.setup.seed, round_index, epoch]).permutation(num_units)
        size = num_units // clock.num_minibatches
        taken = self._take(batch, order[part * size : (part + 1) * size].astype(np.int32), unit_rows=self.block_rows)
        return jax.device_put(taken, sharding.row_shardings(taken, self.setup.mesh))

    def update(self, states: States, batch: Batch) -> tuple[States, Metrics]:
        """One update of every trained role; `states` are donated. The critic's metrics are named `critic_*`."""
        updated, metrics = {}, {}
        for role in self._update:
            updated[role], of_role = self.update_role(role, states[role], batch)
            metrics |= of_role if role == "policy" else {f"{role}_{name}": metric for name, metric in of_role.items()}
        return updated, metrics

    def update_role(self, role: str, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update of one role; `state` is donated."""
        return self._update[role](state, batch)

    def publish(self, states: States) -> Params:
        """Params that the sampler owns."""
        return self._sampler.publish(states["policy"].params)

    def _first_params(self, policy: Params) -> dict[str, Params]:
        critic = self.setup.critic
        return {"policy": policy} | ({} if critic is None else {"critic": critic.params})

    def _fresh_states(self, params: dict[str, Params]) -> States:
        return {
            role: init_state(jax.tree.map(jax.numpy.copy, params[role]), optimizer)
            for role, (_, optimizer) in self._roles.items()
        }

    def _credit_rows(
        self,
        samples: Samples,
        raw_B: Array,
        reference_BC: Array | None,
        proximal_BC: Array | None,
        value_BC: Array | None,
    ) -> tuple[Scores, Batch]:
        setup = self.setup
        scores = score.make_scores(raw_B, samples.finished_B, setup.reward.mean, setup.reward.std, setup.scoring)
        scores = scores.replace(  # type: ignore[attr-defined]
            reference_logprob_BC=reference_BC, proximal_logprob_BC=proximal_BC, value_BC=value_BC
        )
        batch = setup.algorithm.credit(samples, scores)
        shardings = sharding.row_shardings(batch, setup.mesh)
        return scores, jax.lax.with_sharding_constraint(batch, shardings)


def block_rows(algorithm: Algorithm, samples_per_prompt: int, share_prompts: bool) -> int:
    """Rows of a minibatch that are never separated; see `Program.block_rows`."""
    if share_prompts:
        return algorithm.rows_per_prompt(samples_per_prompt)
    return algorithm.unit_rows(samples_per_prompt)


def take_units(batch: Batch, units_U: Array, *, unit_rows: int) -> Batch:
    """The rows of the given units, in their order; scalars as they are."""

    def take(array: Array) -> Array:
        if array.ndim == 0:
            return array
        return array.reshape(-1, unit_rows, *array.shape[1:])[units_U].reshape(-1, *array.shape[1:])

    return jax.tree.map(take, batch)
