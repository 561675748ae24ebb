"""The compiled calls of a round: generate, score, credit, update, publish; both loops call this and nothing else."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rlhf_jax import sampling, scoring
from rlhf_jax.devices import distributed, memory, sharding
from rlhf_jax.devices.placement import ROLES, placed
from rlhf_jax.devices.transfer.per_host import own_mesh
from rlhf_jax.micro_batches import in_parts
from rlhf_jax.records.checkpoints import abstract_like
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import credit, inference
from rlhf_jax.runtime.sampler import Sampler
from rlhf_jax.runtime.setup import Critic as Critic
from rlhf_jax.runtime.setup import Reward as Reward
from rlhf_jax.runtime.setup import Setup as Setup
from rlhf_jax.types import Algorithm, Array, Batch, Metrics, Params, Samples, Scores, States, TrainState
from rlhf_jax.updating import critic_objective, init_state, policy_objective, train_step


class Program:
    """The calls of one round, each compiled for the mesh where the plan places it. Methods only dispatch: arrays stay on
    devices. Samples, scores and the rows to train on lie on the policy's training mesh, `home`."""

    def __init__(self, setup: Setup, reference_params: Params):
        """`reference_params` are the frozen reference, laid out as params are on the run's mesh.

        Raises Refusal for an algorithm whose critic the setup lacks.
        """
        self.setup, self.reference_params = setup, reference_params
        model, places, algorithm = setup.model, setup.places, setup.algorithm
        if ("critic" in algorithm.losses) != (setup.critic is not None):
            raise Refusal(f"{algorithm.name} trains {', '.join(algorithm.losses)}; the critic is {setup.critic}")
        self._roles: dict[str, tuple[Any, optax.GradientTransformation]] = {"policy": (model, setup.optimizer)}
        if setup.critic is not None:
            self._roles["critic"] = (setup.critic.model, setup.critic.optimizer)
        self.meshes = {role: places.mesh(f"train_{role}") for role in self._roles}
        self.home = self.meshes["policy"]
        first = self._first_params(reference_params)
        self.state_shapes: States = {
            role: jax.eval_shape(partial(init_state, optimizer=optimizer), first[role])
            for role, (_, optimizer) in self._roles.items()
        }
        self.state_shardings: States = {
            role: sharding.state_shardings(role_model, self.state_shapes[role], optimizer, self.meshes[role])
            for role, (role_model, optimizer) in self._roles.items()
        }
        self._sampler = self._make_sampler()
        self._inference = inference.make(setup)
        trainer = [*self.meshes.values(), *(call.mesh for call in self._inference.values())]
        shared = self._sampler.devices & {device for mesh in trainer for device in mesh.devices.flat}
        # Two threads that dispatch collectives to the same devices must do so in one order on all of them, or they deadlock.
        self._turn: Any = threading.RLock() if len(shared) > 1 else contextlib.nullcontext()
        self._frozen = {
            call: placed(params, inference.params_layout(setup, call, params))
            for call, params in (("reference", reference_params), ("reward", setup.reward.params))
            if call in self._inference
        }
        self._credit = distributed.compiled(self._credit_rows)
        self._faults = distributed.compiled(
            credit.faults
        )  # apart, so that what it asks cannot change what credit computes
        self._take = distributed.compiled(partial(take_units, mesh=self.home), static_argnames=("unit_rows",))
        self._update = {role: self._make_update(role) for role in self._roles}
        self._init = {
            role: distributed.compiled(
                partial(fresh_state, optimizer=optimizer), out_shardings=self.state_shardings[role]
            )
            for role, (_, optimizer) in self._roles.items()
        }

    @property
    def trains_apart(self) -> bool:
        """Whether the critic trains on another mesh than the policy."""
        return len(set(self.meshes.values())) > 1

    def _make_sampler(self) -> Sampler:
        setup, places = self.setup, self.setup.places
        draw = partial(
            sampling.sample,
            model=inference.changed(setup.model, places, "generate"),
            config=setup.sampling,
            eos_id=setup.eos_id,
            pad_id=setup.pad_id,
        )
        slices = setup.sampler_slices
        if not slices and places.mesh("generate") != self.home:
            slices = (own_mesh(places.mesh("generate")),)
        in_turn = in_parts(draw, places.parts("generate"), 1, setup.sampling.samples_per_prompt)
        prompts = jax.eval_shape(lambda: setup.prompts(0))
        return Sampler(
            in_turn, setup.model, self.reference_params, prompts, setup.key, self.home, slices, setup.publish_dtype
        )

    def _make_update(self, role: str) -> Any:
        (model, optimizer), algorithm, places = self._roles[role], self.setup.algorithm, self.setup.places
        make_objective = policy_objective if role == "policy" else critic_objective
        model = inference.changed(model, places, f"train_{role}")
        step = partial(
            train_step,
            objective=make_objective(algorithm.losses[role], model, self.block_rows),
            optimizer=optimizer,
            aggregation=algorithm.aggregation if role == "policy" else "token",
            unit_rows=self.block_rows,
            num_micro_batches=places.parts(f"train_{role}"),
        )
        mesh = self.meshes[role]
        everywhere, step = sharding.replicated(mesh), sharding.keeping_rows(step, mesh)
        return distributed.compiled(step, donate_argnums=0, out_shardings=(self.state_shardings[role], everywhere))

    @property
    def block_rows(self) -> int:
        """Rows that stay together: all of a prompt's, so that the prompt is run once, or else the algorithm's unit."""
        return block_rows(self.setup.algorithm, self.setup.sampling.samples_per_prompt, self.setup.share_prompts)

    def check_memory(self, asynchronous: bool) -> None:
        """Raises Refusal where a device cannot hold its train states and the versions that the clock may keep alive."""
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
        calls = self.calls()
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(lambda call: call[1].lower(*call[2]).compile(), calls))

    def calls(self) -> list[tuple[str, Any, tuple[Any, ...]]]:
        """Each call's name, compiled function, and arguments as shapes with shardings; generate once for each slice."""
        samples, minibatch = self._sampler.shapes, self.minibatch_shapes()
        found = [("generate", *call) for call in self._sampler.calls(self.reference_params)]
        for name, call in self._inference.items():
            found.append((name, call.run, (self._abstract_params(name), sharding.abstract_rows(samples, call.mesh))))
        for role, update in self._update.items():
            state = abstract_like(self.state_shapes[role], self.state_shardings[role])
            found.append((f"train_{role}", update, (state, sharding.abstract_rows(minibatch, self.meshes[role]))))
        return found

    def minibatch_shapes(self) -> Batch:
        """Shapes of what an update trains on."""
        _, batch = jax.eval_shape(self._credit_rows, self._sampler.shapes, *self._judgement_shapes())
        size = batch.tokens_RC.shape[0] // self.setup.clock.num_minibatches
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]) if x.ndim else (), x.dtype), batch)

    def _abstract_params(self, call: str) -> Any:
        if call in self._frozen:
            return self._frozen[call]
        shapes = self.state_shapes[ROLES[call]].params
        return abstract_like(shapes, inference.params_layout(self.setup, call, shapes))

    def _judgement_shapes(self) -> tuple[Any, Any, Any, Any]:
        rows, length = self._sampler.shapes.tokens_BC.shape
        needs = self.setup.algorithm.needs
        per_token = jax.ShapeDtypeStruct((rows, length), np.float32)
        reference, proximal, value = (
            per_token if need in needs else None for need in ("reference", "proximal", "value")
        )
        raw: Any = jax.ShapeDtypeStruct((rows,), np.float32)
        if self.setup.reward.terms:
            raw = {term.label: raw for term in self.setup.reward.terms}
        return raw, reference, proximal, value

    def init(self, params: Params) -> States:
        """Fresh states at version 0, the policy's from a copy of `params`: arrays given survive the first donated step."""
        first = self._first_params(params)
        return {role: make(placed(first[role], self.state_shardings[role].params)) for role, make in self._init.items()}

    def generate(self, params: Params, round_index: int, version: int) -> Samples:
        """Samples a round with published params."""
        prompts = self.setup.prompts(round_index)
        with self._turn:
            return self._sampler.generate(params, prompts, version)

    def score(self, states: States, samples: Samples) -> tuple[Scores, Batch]:
        """The scores of the samples by every role, and the rows to train on. Calls on devices of their own run side by side."""
        said = {}
        with self._turn:
            on = {self.home: samples}
            for name, call in self._inference.items():
                if call.mesh not in on:
                    on[call.mesh] = placed(samples, sharding.row_shardings(samples, call.mesh))
                said[name] = call(self._params_for(name, states), on[call.mesh])
        said["reward"] = credit.raw_scores(self.setup.reward, samples, said.get("reward"))
        with self._turn:
            raw, scores, batch = self._credited(samples, said)
            found = self._faults(raw, scores, batch)
        # Only now, without the lock: reading waits for the devices, and the sampler may dispatch in the meantime.
        if bits := int(distributed.fetch(found)):
            texts = self.setup.texts and self.setup.texts(samples).__getitem__
            credit.refuse(bits, self.setup.algorithm, raw, batch, credit.when(samples), texts)
        return scores, batch

    def _credited(self, samples: Samples, said: dict[str, Any]) -> tuple[dict[str, Array], Scores, Batch]:
        """The raw scores by the reward's name (of a sum by label), the scores, and the rows to train on."""
        rows = sharding.rows(self.home)
        raw = jax.tree.map(lambda array: placed(array, rows), said["reward"])
        reference, proximal, value = (
            placed(said[name], rows) if name in said else None for name in ("reference", "proximal", "value")
        )
        scores, batch = self._credit(samples, raw, reference, proximal, value)
        return raw if isinstance(raw, dict) else {self.setup.reward.name: raw}, scores, batch

    def _params_for(self, call: str, states: States) -> Params:
        if call in self._frozen:
            return self._frozen[call]
        params = states[ROLES[call]].params
        return placed(params, inference.params_layout(self.setup, call, params))

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
        taken = order[part * size : (part + 1) * size].astype(np.int32)
        with self._turn:
            return self._take(batch, taken, unit_rows=self.block_rows)

    def update(self, states: States, batch: Batch) -> tuple[States, Metrics]:
        """One update of every trained role; `states` are donated. The critic's metrics are named `critic_*`."""
        updated, metrics = {}, {}
        for role in self._update:
            updated[role], of_role = self.update_role(role, states[role], batch)
            metrics |= of_role if role == "policy" else {f"{role}_{name}": metric for name, metric in of_role.items()}
        return updated, metrics

    def update_role(self, role: str, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update of one role, on its mesh; `state` is donated."""
        with self._turn:
            rows = placed(batch, sharding.row_shardings(batch, self.meshes[role]))
            return self._update[role](state, rows)

    def publish(self, states: States) -> Params:
        """Params that the sampler owns."""
        with self._turn:
            return self._sampler.publish(states["policy"].params)

    def _first_params(self, policy: Params) -> dict[str, Params]:
        critic = self.setup.critic
        return {"policy": policy} | ({} if critic is None else {"critic": critic.params})

    def _credit_rows(
        self,
        samples: Samples,
        raw: Any,
        reference_BC: Array | None,
        proximal_BC: Array | None,
        value_BC: Array | None,
    ) -> tuple[Scores, Batch]:
        setup = self.setup
        reward, finished_B = setup.reward, samples.finished_B
        if reward.terms:
            scores = scoring.make_summed_scores(raw, reward.units, finished_B, setup.scoring)
        else:
            scores = scoring.make_scores(raw, finished_B, reward.mean, reward.std, setup.scoring)
        scores = scores.replace(  # type: ignore[attr-defined]
            reference_logprob_BC=reference_BC, proximal_logprob_BC=proximal_BC, value_BC=value_BC
        )
        batch = credit.credited(setup.algorithm, samples, scores)
        return scores, jax.lax.with_sharding_constraint(batch, sharding.row_shardings(batch, self.home))


def block_rows(algorithm: Algorithm, samples_per_prompt: int, share_prompts: bool) -> int:
    """Rows of a minibatch that are never separated; see `Program.block_rows`."""
    if share_prompts:
        return algorithm.rows_per_prompt(samples_per_prompt)
    return algorithm.unit_rows(samples_per_prompt)


def fresh_state(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at version 0 whose params are copies."""
    return init_state(jax.tree.map(jax.numpy.copy, params), optimizer)


def take_units(batch: Batch, units_U: Array, *, unit_rows: int, mesh: Mesh) -> Batch:
    """The rows of the given units, in their order, over the mesh; scalars as they are."""

    def take(array: Array) -> Array:
        if array.ndim == 0:
            return array
        return array.reshape(-1, unit_rows, *array.shape[1:])[units_U].reshape(-1, *array.shape[1:])

    taken = jax.tree.map(take, batch)
    return jax.lax.with_sharding_constraint(taken, sharding.row_shardings(taken, mesh))
