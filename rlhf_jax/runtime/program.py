"""The compiled calls of a round: generate, score, credit, update, publish; both loops call this and
nothing else.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

from rlhf_jax.clock import choice
from rlhf_jax.dataflow import REWARD, SCORES, Call
from rlhf_jax.devices import distributed, memory, sharding
from rlhf_jax.devices.bases import Bases
from rlhf_jax.devices.placement import put
from rlhf_jax.models.common.adapters import Rest, join, split
from rlhf_jax.models.common.rounding import as_trained, check_trainable
from rlhf_jax.ops.once import bound
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import calls, credit, shapes
from rlhf_jax.runtime.groups import selection
from rlhf_jax.runtime.sampler import Entry, make_sampler
from rlhf_jax.runtime.spec import Critic as Critic
from rlhf_jax.runtime.spec import ProgramSpec as ProgramSpec
from rlhf_jax.runtime.spec import Published
from rlhf_jax.runtime.spec import Reward as Reward
from rlhf_jax.types import Array, Batch, Device, Metrics, Params, Samples, Scores, States

CREDIT, GATHER, PUBLISH = "credit", "gather", "publish"


class Program:
    """Executes the calls of a round's dataflow, each compiled for the mesh of its placement.

    Methods only dispatch: arrays stay on devices. Samples, scores and the rows to train on are on
    the policy's training mesh, `trainer_mesh`.
    """

    def __init__(self, spec: ProgramSpec, reference_params: Params):
        """Wires the calls; nothing is compiled yet.

        Args:
          spec: models, algorithm, reward, clock, plan and keys of the program.
          reference_params: the frozen reference, sharded as params are on the run's mesh. What is
            frozen may be held in the dtype of products (`rounding.held`); what is trained is
            float32 all the same.

        Raises:
          Refusal: the algorithm's critic, or the model of a score, is missing from the spec.
        """
        self.spec, self.reference_params = spec, reference_params
        if ("critic" in spec.algorithm.losses) != (spec.critic is not None):
            trained = ", ".join(spec.algorithm.losses)
            raise Refusal(f"{spec.algorithm.name} trains {trained}; the critic is {spec.critic}")
        self.generate_call, *others = spec.calls
        self.meshes = {
            call.role: spec.resolved_plan.mesh(call.name) for call in others if call.kind == "train"
        }
        self.trainer_mesh = self.meshes["policy"]
        first, self._bases = self._first_params(reference_params), Bases()
        self._rest = {
            role: self._bases.rest(params, spec.trained[role][0], self.meshes[role])
            for role, params in first.items()
        }
        trained = {role: as_trained(split(params)[0]) for role, params in first.items()}
        self.state_shapes, self.state_shardings = shapes.state_shapes(spec, trained)
        self.sampler = make_sampler(
            spec,
            self.generate_call,
            self.trainer_mesh,
            join(trained["policy"], self._rest["policy"]),
            self._bases,
        )
        self.scores = {
            call.name: calls.score(spec, call) for call in others if call.kind == "infer"
        }
        self.updates = {
            call.role: calls.update(spec, call, self.state_shardings[call.role])
            for call in others
            if call.kind == "train"
        }
        trainer = [call.mesh for call in (*self.updates.values(), *self.scores.values())]
        shared = self.sampler.devices & {device for mesh in trainer for device in mesh.devices.flat}
        # Two threads that dispatch collectives to the same devices must do so in one order on all
        # of them, or they deadlock.
        self.dispatch_lock: contextlib.AbstractContextManager[object] = (
            threading.RLock() if len(shared) > 1 else contextlib.nullcontext()
        )
        self._frozen = self._put_frozen()
        self._stored_scores = calls.StoredScores(spec, self.trainer_mesh)
        self._credit_rows = partial(credit.rows, spec=spec, mesh=self.trainer_mesh)
        self._credit_scalars = credit.credit_scalars(spec)
        self._credit = distributed.compiled(self._credit_rows)
        # Compiled apart from credit, so that the checks cannot change what credit computes.
        self._faults = distributed.compiled(credit.faults)
        self._take = distributed.compiled(
            bound(calls.take_units, mesh=self.trainer_mesh), static_argnames=("unit_rows",)
        )
        self._gather = distributed.compiled(bound(calls.gather_groups, mesh=self.trainer_mesh))
        self._init = {
            role: distributed.compiled(
                bound(calls.fresh_state, optimizer=optimizer),
                out_shardings=self.state_shardings[role],
            )
            for role, (_, optimizer) in spec.trained.items()
        }

    def _put_frozen(self) -> dict[str, Params]:
        """Params of the scores whose role is not trained, by call, on the call's mesh."""
        spec = self.spec
        params = {role: frozen.params for role, frozen in spec.frozen.items()}
        params |= {"reference": self.reference_params}
        if spec.reward.params is not None:
            params |= {"reward": spec.reward.params}
        return {
            name: self._bases.put(
                params[score.call.role],
                calls.params_shardings(spec, score.call, params[score.call.role]),
            )
            for name, score in self.scores.items()
            if score.call.role not in self.meshes
        }

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of a round, in the order of dispatch."""
        compiled = (*self.scores.values(), *self.updates.values())
        return self.generate_call, *(each.call for each in compiled)

    @property
    def critic_is_disaggregated(self) -> bool:
        """True where the critic trains on another mesh than the policy."""
        return len(set(self.meshes.values())) > 1

    @property
    def block_rows(self) -> int:
        """Rows of a minibatch that are never separated."""
        return self.spec.block_rows

    # --- ahead of time ---

    def check_memory(self, asynchronous: bool, slots: Mapping[Device, int] | None = None) -> None:
        """Raises Refusal where a device cannot hold its train states, and the versions and sampled
        rounds that the clock may keep.

        Args:
          asynchronous: of the loop.
          slots: bytes by device of the rows that are drawn together; None: there are no slots.
        """
        states = memory.bytes_by_device(self.state_shapes, self.state_shardings)
        clock, rows = self.spec.clock, self.sampler.shapes
        of_round = memory.bytes_by_device(rows, sharding.row_shardings(rows, self.trainer_mesh))
        versions = self.sampler.version_bytes(), clock.live_versions(asynchronous)
        memory.check(states, *versions, memory.free_bytes, slots, (clock.held_rounds, of_round))

    def compile(self) -> None:
        """Compiles a round's longest calls at the same time, from shapes alone.

        The first update then waits for the slowest of them, not for their sum. A call finds its
        program in JAX's cache.
        """
        with ThreadPoolExecutor(len(entries := self._ahead())) as pool:
            list(pool.map(lambda entry: entry[0].lower(*entry[1]).compile(), entries))

    def _ahead(self) -> list[Entry]:
        """The compiled functions of a round's longest calls, with shapes of their arguments."""
        return [entry for call in self.calls for entry in self._entries(call.name)]

    def lowered(self, call: str, platform: str = "") -> jax.stages.Lowered:
        """Lowers one call from shapes alone.

        Args:
          call: the name of a call of the dataflow, "credit", "gather" or "publish". Of `generate` on several
            slices, the first slice's.
          platform: lowers for another one than that of the program's devices, such as "tpu"; the
            compiler of that platform need not be here.

        Returns:
          What `jax.jit(...).lower` gives: its text, and `.compile()`.
        """
        function, arguments = self._entries(call)[0]
        platforms = (platform,) if platform else None
        return function.trace(*arguments).lower(lowering_platforms=platforms)

    @property
    def compiled_names(self) -> tuple[str, ...]:
        """The names that `lowered` takes. Publishing to other devices copies, and compiles nothing.
        Params that are sharded over hosts are gathered on each before they are published.
        """
        gather = (GATHER,) if self.sampler.gather_call(self._shapes.policy()) else ()
        publish = () if self.sampler.is_disaggregated else (PUBLISH,)
        return (*(call.name for call in self.calls), CREDIT, *gather, *publish)

    def arguments(self, call: str) -> tuple[object, ...]:
        """Returns the arguments that `lowered` lowers a call for, as shapes with shardings (frozen
        params as arrays, and numbers as they are).
        """
        return self._entries(call)[0][1]

    def minibatch_shapes(self) -> Batch:
        """Shapes of what an update trains on."""
        return self._shapes.minibatch(partial(self._credit_rows, scalars=self._credit_scalars))

    @property
    def _shapes(self) -> shapes.Shapes:
        states = self.state_shapes, self.state_shardings
        return shapes.Shapes(
            self.spec, self.sampler.shapes, *states, self._frozen, self.trainer_mesh, self._rest_of
        )

    def _entries(self, name: str) -> list[Entry]:
        """The compiled functions of a call with shapes of their arguments; of `generate` one for
        each slice.
        """
        if name == self.generate_call.name:
            return self.sampler.calls(self.reference_params)
        if name in self.scores:
            score = self.scores[name]
            return [(score.function, self._shapes.score_arguments(score.call))]
        for update in self.updates.values():
            if name == update.call.name:
                rows = self._shapes.update_arguments(update.call, self.minibatch_shapes())
                rest = self._rest[update.call.role]
                return [(update.function, (*rows, update.scalars, rest))]
        if name == CREDIT:
            return [(self._credit, (*self._shapes.credit_arguments(), self._credit_scalars))]
        publishing = {GATHER: self.sampler.gather_call, PUBLISH: self.sampler.publish_call}
        if name in publishing and (entry := publishing[name](self._shapes.policy())):
            return [entry]
        accepted = ", ".join(self.compiled_names)
        raise Refusal(f"the round has no call {name!r}; accepted: {accepted}")

    # --- one round ---

    def init(self, params: Params, critic: Params | None = None) -> States:
        """Fresh states at version 0, of copies: arrays given survive the first donated step.

        Args:
          params: of the policy, float32.
          critic: its params, float32; None: those of the spec.

        Raises Refusal for params that are rounded, or only shapes.
        """
        first = self._first_params(params) | ({} if critic is None else {"critic": critic})
        trained = {role: split(params)[0] for role, params in first.items()}
        for role, of_role in trained.items():
            check_trainable(of_role, role)
        return {
            role: make(put(trained[role], self.state_shardings[role].params))
            for role, make in self._init.items()
        }

    def generate(self, params: Published, round_index: int, version: int) -> Samples:
        """Samples a round with published params.

        Args:
          params: on the sampler's devices.
          round_index: 0-based; it chooses prompts and random numbers.
          version: updates that made the params; it is stamped on the samples.
        """
        prompts = self.spec.prompts(round_index)
        with self.dispatch_lock:
            return self.sampler.generate(params, prompts, version)

    def select(self, samples: Samples) -> selection.Selection:
        """Selects the groups that a sampled round keeps, by the raw reward of all of them.

        Args:
          samples: of the round, κP groups.
        """
        model_scores_B = None
        if reward := self.scores.get(REWARD):
            with self.dispatch_lock:
                on_call = put(samples, sharding.row_shardings(samples, reward.mesh))
                model_scores_B = reward.function(self._frozen[REWARD], on_call)
        return selection.select(self.spec, samples, model_scores_B)

    def compose(
        self, rounds: Sequence[Samples], round_index: int, selections: selection.Selections = ()
    ) -> tuple[Samples, selection.Selection | None]:
        """Gathers the groups that a round is trained on; arguments as `selection.chosen`."""
        padded, group_P, selected = selection.chosen(self.spec, rounds, round_index, selections)
        with self.dispatch_lock:
            return self._gather(padded, group_P), selected

    def score(
        self, states: States, samples: Samples, given: credit.RawScores | None = None
    ) -> tuple[Scores, Batch]:
        """Computes every score of the samples, and the rows to train on.

        Calls on disjoint devices run at the same time.

        Args:
          states: of the trained roles.
          samples: of the round.
          given: their raw scores, where they are known; None: the reward is asked.

        Raises RewardError or ComponentError for scores or rows that are not finite or not valid.
        """
        outputs: dict[str, Array] = {}
        with self.dispatch_lock:
            samples_on = {self.trainer_mesh: samples}
            asked = {n: s for n, s in self.scores.items() if n != REWARD or given is None}
            for name, score in asked.items():
                if score.mesh not in samples_on:
                    samples_on[score.mesh] = put(
                        samples, sharding.row_shardings(samples, score.mesh)
                    )
                outputs[name] = score.function(
                    self._params_of(score.call, states), samples_on[score.mesh]
                )
        raw = given
        if raw is None:
            raw = credit.raw_scores(self.spec.reward, samples, outputs.pop(REWARD, None))
        with self.dispatch_lock:
            rows = sharding.rows(self.trainer_mesh)
            raw = jax.tree.map(lambda array: put(array, rows), raw)
            resharded = {SCORES[name].output: put(output, rows) for name, output in outputs.items()}
            resharded |= self._stored_scores(samples)
            scores, batch = self._credit(samples, raw, resharded, self._credit_scalars)
            named = raw if isinstance(raw, dict) else {self.spec.reward.name: raw}
            faults = self._faults(named, scores, batch)
        # Only now, without the lock: reading waits for the devices, and the sampler may dispatch in
        # the meantime.
        if bits := int(distributed.fetch(faults)):
            texts = self.spec.texts and self.spec.texts(samples).__getitem__
            when = credit.round_text(samples, self.spec.oversample)
            credit.refuse(bits, self.spec.algorithm, named, batch, when, texts)
        return scores, batch

    def _params_of(self, call: Call, states: States) -> Params:
        if call.name in self._frozen:
            return self._frozen[call.name]
        params = states[call.role].params
        on_call = put(params, calls.params_shardings(self.spec, call, params))
        return join(on_call, self._rest_of(call))

    def _rest_of(self, call: Call) -> Rest:
        """The part of a trained role's params that no update changes, on the mesh of a call."""
        network, rest = self.spec.networks[call.role], self._rest[call.role]
        if rest is None or network is None:
            return None
        params = join(self.state_shapes[call.role].params, rest)
        return self._bases.rest(params, network, self.spec.resolved_plan.mesh(call.name))

    def policy(self, states: States) -> Params:
        """The policy's params, to be evaluated or sampled from: with adapters, on their base."""
        return join(states["policy"].params, self._rest["policy"])

    def minibatch(self, batch: Batch, round_index: int, update_in_round: int) -> Batch:
        """Rows of one update: blocks by `choice.units`."""
        clock = self.spec.clock
        if clock.updates_per_round == 1:
            return batch
        num_units = batch.tokens_RC.shape[0] // self.block_rows
        units = choice.units(clock, num_units, self.spec.seed, round_index, update_in_round)
        with self.dispatch_lock:
            return self._take(batch, units, unit_rows=self.block_rows)

    def update(self, states: States, batch: Batch) -> tuple[States, Metrics]:
        """Makes one update of every role of `states`, each on its mesh.

        Args:
          states: of the trained roles; donated.
          batch: rows of one minibatch, on the policy's training mesh.

        Returns:
          The states at the next version, and metrics. The critic's are named `critic_*`.
        """
        updated, metrics = {}, {}
        # In the order of the dataflow: a restored dict of states may have another.
        for role, step in self.updates.items():
            if role not in states:
                continue
            with self.dispatch_lock:
                rows = put(batch, sharding.row_shardings(batch, step.mesh))
                updated[role], role_metrics = step.function(
                    states[role], rows, step.scalars, self._rest[role]
                )
            metrics |= (
                role_metrics
                if role == "policy"
                else {f"{role}_{name}": metric for name, metric in role_metrics.items()}
            )
        return updated, metrics

    def publish(self, states: States) -> Published:
        """Params that the sampler owns."""
        with self.dispatch_lock:
            return self.sampler.publish(states["policy"].params)

    def _first_params(self, policy: Params) -> dict[str, Params]:
        critic = self.spec.critic
        return {"policy": policy} | ({} if critic is None else {"critic": critic.params})
