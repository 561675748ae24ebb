"""The measured cost model: times on the devices at hand, kept in a file; elsewhere formulas scaled
to these times.
"""

import copy
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import jax
from jax.sharding import Mesh

from rlhf_jax import randomness
from rlhf_jax.dataflow import Call, Loop
from rlhf_jax.devices import sharding
from rlhf_jax.devices.placement import OTHERS, ResolvedPlan, describe, parse
from rlhf_jax.models.api import Model
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.planner.costs import measure
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.lengths import decode_steps
from rlhf_jax.records.jsonl import replace
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.types import Placement, Plan, Samples


class MeasuredCostModel:
    """`CostModel` of `api.py`: measured where `measure` has been, else by formulas times what
    measurement says of them.
    """

    def __init__(self, spec: ProgramSpec, formulas: AnalyticCostModel, path: Path | None = None):
        """`path`: the file in which measurements are kept and found again; figures of another jax,
        device, model or work are told apart.
        """
        self.spec, self.formulas, self.path = spec, formulas, path
        self.known: dict[str, float] = {}
        self._all: dict[str, dict[str, float]] = {}
        self._scales: dict[
            str, float
        ] = {}  # by call, until more is measured: a search asks for thousands of options
        if path is not None and path.exists():
            self._all = json.loads(path.read_text())
            self.known = self._all.get(self.identity, {})

    def with_loop(self, loop: Loop, lag: int) -> "MeasuredCostModel":
        """The same measurements for another loop: the seconds of a call do not depend on it.

        Args:
          loop: "synchronous" or "asynchronous".
          lag: in rounds.
        """
        changed = copy.copy(self)
        work = dataclasses.replace(self.formulas.work, loop=loop, lag=lag)
        changed.formulas = dataclasses.replace(self.formulas, work=work)
        return changed

    @property
    def identity(self) -> str:
        """The identity of the measurements: devices, versions, models, the workload of a round."""
        device, spec = jax.devices()[0], self.spec
        critic = None if spec.critic is None else spec.critic.model
        models = [repr(network) for network in (spec.model, critic, spec.reward.network)]
        work = dataclasses.replace(
            self.formulas.work, completion_lengths=(), lag=0, loop="synchronous"
        )
        facts = [
            device.device_kind,
            len(jax.devices()),
            jax.__version__,
            spec.algorithm.name,
            spec.publish_dtype,
            "frozen params in the dtype of products",
        ]
        text = repr([*facts, *models, work, spec.num_micro_batches])
        return f"{device.device_kind}, jax {jax.__version__}: {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    # --- the protocol CostModel ---

    @property
    def device_bytes(self) -> float:
        return self.formulas.device_bytes

    @property
    def shared_throughput(self) -> bool:
        return self.formulas.shared_throughput

    def refusal(self, call: Call, placement: Placement) -> str | None:
        return self.formulas.refusal(call, placement)

    def seconds(self, call: Call, placement: Placement) -> float:
        """Seconds in a round: measured, generation for the lengths at hand; else by formulas times
        `scale`.
        """
        key = call_key(call, placement)
        if key in self.known:
            return self._of_round(call, placement, key)
        if call.name not in self._scales:
            self._scales[call.name] = self.scale(call)
        return self._scales[call.name] * self.formulas.seconds(call, placement)

    def working_bytes(self, call: Call, placement: Placement) -> float:
        key = f"{call_key(call, placement)} bytes"
        if key in self.known:
            needed = self.known[key] + self.formulas.base_bytes(call.role, placement)
            return max(needed, self.formulas.scoring_bytes)
        return self.formulas.working_bytes(call, placement)

    def params_bytes(self, role: str, placement: Placement) -> float:
        return self.formulas.params_bytes(role, placement)

    def state_bytes(self, role: str, placement: Placement) -> float:
        return self.formulas.state_bytes(role, placement)

    def reallocate_seconds(self, role: str, source: Placement, target: Placement) -> float:
        key = move_key(role, source, target)
        return (
            self.known[key]
            if key in self.known
            else self.formulas.reallocate_seconds(role, source, target)
        )

    def transfer_seconds(self, call: Call, source: Placement, target: Placement) -> float:
        key = move_key(call.produces[0], source, target)
        return (
            self.known[key]
            if key in self.known
            else self.formulas.transfer_seconds(call, source, target)
        )

    # --- what was measured ---

    def _of_round(self, call: Call, placement: Placement, key: str) -> float:
        work, seconds = self.formulas.work, self.known[key]
        if call.kind == "train":
            rows = self.known[rows_key(placement)] if call.role == "policy" else 0.0
            return work.num_minibatches * work.num_epochs * seconds + rows
        if call.kind == "infer":
            return seconds
        prefill = self.known[f"{key} prefill"]
        return prefill + (seconds - prefill) * self._share_of_steps(call, placement)

    def _share_of_steps(self, call: Call, placement: Placement) -> float:
        """Expected steps of decoding, each by its share of the rows, against all of them at full
        size.
        """
        work, shards = self.formulas.work, placement.mesh_shape[0] * placement.mesh_shape[1]
        rows = work.prompts_of(call) * work.samples_per_prompt
        rows //= shards * placement.num_micro_batches
        sizes = decode_steps(
            work.completion_lengths, work.completion_tokens, rows, shards, work.num_compactions
        )
        return sum(steps * size / rows for size, steps in sizes) / max(
            1, work.completion_tokens - 1
        )

    def scale(self, call: Call) -> float:
        """Ratio of measured to analytic seconds for calls of this kind and role: the median of what
        was measured, or 1.
        """
        begin = f"{call.name} "
        ratios = []
        for key in self.known:
            if key.startswith(begin) and not key.endswith((" bytes", " prefill")):
                placement = placement_of(key.removeprefix(begin))
                ratios.append(
                    self._of_round(call, placement, key) / self.formulas.seconds(call, placement)
                )
        return statistics.median(ratios) if ratios else 1.0

    def missing(self, calls: Sequence[Call], plan: Plan) -> list[str]:
        """Names of the calls that were not measured at their placement in a plan.

        Args:
          calls: of the round.
          plan: a placement for each of them.
        """
        return [
            call.name
            for call in calls
            if call_key(call, plan.placements[call.name]) not in self.known
        ]

    def measure(self, calls: Sequence[Call], plan: Plan) -> None:
        """Measures every call of a plan, and every move between them, that has no measurement yet.

        The file is written at the end.

        Args:
          calls: of the round.
          plan: a placement for each of them.
        """
        self._scales.clear()
        for call in calls:
            self._measure_call(call, plan.placements[call.name])
        for role, source, target in moves(calls, plan):
            self._measure_move(role, source, target)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._all[self.identity] = self.known
            replace(self.path, json.dumps(self._all, indent=1, sort_keys=True).encode())

    def _measure_call(self, call: Call, placement: Placement) -> None:
        key, num_layers = call_key(call, placement), self.formulas.shapes[call.role].num_layers
        if key in self.known:
            return
        measured = measure.time_call(self.spec, call.name, placement, num_layers)
        if call.kind == "generate":
            first = measure.time_call(
                self.spec, call.name, placement, num_layers, max_completion_tokens=1
            )
            self.known[f"{key} prefill"] = first.seconds
        if call.kind == "train" and call.role == "policy" and rows_key(placement) not in self.known:
            self.known[rows_key(placement)] = measure.time_rows(self.spec, placement)
        self.known |= {key: measured.seconds, f"{key} bytes": measured.working_bytes}

    def _measure_move(self, what: str, source: Placement, target: Placement) -> None:
        key = move_key(what, source, target)
        if key in self.known or source.layout == target.layout:
            return
        source_mesh, target_mesh = (mesh_of(self.spec, placement) for placement in (source, target))
        if (network := self.spec.networks.get(what)) is not None:
            self.known[key] = measure.time_move(
                lambda depth: params_between(
                    network.with_config(num_layers=depth), source_mesh, target_mesh
                ),
                self.formulas.shapes[what].num_layers,
            )
            return
        rows = self._samples if what == "samples" else self._samples.behavior_logprob_BC
        layouts = (
            sharding.row_shardings(rows, source_mesh),
            sharding.row_shardings(rows, target_mesh),
        )
        self.known[key] = measure.time_move(lambda depth: (rows, *layouts), 1)

    @cached_property
    def _samples(self) -> Samples:
        """Shapes of a round's samples, which do not depend on where they are drawn."""
        return measure.Program(
            *measure.with_depth(self.spec, 1, Placement((0,), (1, 1, 1)))
        ).sampler.shapes


def moves(calls: Sequence[Call], plan: Plan) -> Iterable[tuple[str, Placement, Placement]]:
    """The transfers in a round of a plan: params of trained roles, and rows."""
    placements = plan.placements
    trained = {call.role: call for call in calls if call.kind == "train"}
    trainer = placements["train_policy"]
    for call in calls:
        if call.kind != "train" and call.role in trained:
            yield call.role, placements[trained[call.role].name], placements[call.name]
    for call in calls:
        if call.kind == "generate":
            yield from (
                ("samples", placements[call.name], placements[reader.name])
                for reader in calls
                if reader is not call
            )
        elif call.kind == "infer":
            yield call.produces[0], placements[call.name], trainer


def params_between(
    network: Model | ValueModel, source: Mesh, target: Mesh
) -> measure.TreeAndShardings:
    """Shapes of params, and their shardings on two meshes."""
    shapes = jax.eval_shape(network.init, randomness.key(0))
    shardings = [sharding.params_shardings(network, shapes, mesh) for mesh in (source, target)]
    return shapes, shardings[0], shardings[1]


def mesh_of(spec: ProgramSpec, placement: Placement) -> Mesh:
    """The mesh of a placement, over the devices at hand.

    Args:
      spec: of the program, for the names of the mesh's axes.
      placement: of a call.
    """
    return ResolvedPlan(spec.mesh, jax.devices(), Plan({OTHERS: placement})).mesh(OTHERS)


def relative(placement: Placement, begin: int) -> str:
    """A placement without its micro-batches, as text, its devices counted from `begin`."""
    return describe(
        Placement(tuple(device - begin for device in placement.devices), placement.mesh_shape)
    )


def call_key(call: Call, placement: Placement) -> str:
    """Key of a measured call: devices of one host are alike, so their indices are left out."""
    anywhere = dataclasses.replace(placement, devices=tuple(range(len(placement.devices))))
    return f"{call.name} {describe(anywhere)}"


def rows_key(placement: Placement) -> str:
    return f"rows {relative(placement, min(placement.devices))}"


def move_key(what: str, source: Placement, target: Placement) -> str:
    begin = min(*source.devices, *target.devices)
    return f"{what}: {relative(source, begin)} to {relative(target, begin)}"


def placement_of(text: str) -> Placement:
    """The placement that a key describes."""
    return parse(f"{OTHERS}: {text}").placements[OTHERS]
