"""Seconds of a round that the planner expects of random plans beside what they take, and the
searched plan beside the default.

PPO of four roles (a decoder of 4 layers, a reward model and a critic on such backbones) on 8
virtual devices of one host, whose cores the devices share. Every call of every plan is profiled
with one and with two layers; then the plans' rounds run in turn, and the least of each counts.

`memory`: bytes that a call takes, expected and as XLA plans them. `params`: the params after some
rounds under random plans beside those on one device, PPO and Online DPO, synchronous and at lag 1.
`searched`: the plan that profile and search end at, beside one mesh for every call, for several
sizes of round.

    python -m experiments.bench.plans [--plans=20] [--only=estimates|memory|params|searched]
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments.bench import measure
from rlhf_jax import registry, sampling, scoring
from rlhf_jax.clock import Clock
from rlhf_jax.dataflow import Call, calls_of
from rlhf_jax.devices import mesh
from rlhf_jax.devices.placement import text_of
from rlhf_jax.models import gpt_neox
from rlhf_jax.models.common import value_head
from rlhf_jax.planner.api import CostModel, Workload
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import Hardware, find
from rlhf_jax.planner.costs.measure import bytes_of, time_call, with_depth
from rlhf_jax.planner.costs.measured import MeasuredCostModel
from rlhf_jax.planner.costs.shapes import model_shape
from rlhf_jax.planner.options import mesh_shapes, slices
from rlhf_jax.planner.search.search import search
from rlhf_jax.planner.simulation import simulate
from rlhf_jax.rewards import learned
from rlhf_jax.runtime import asynchronous, synchronous
from rlhf_jax.runtime.program import Critic, Program, ProgramSpec, Reward
from rlhf_jax.types import Placement, Plan, Prompts
from rlhf_jax.updating import OptimizerConfig, make_optimizer

DEVICES = 8
CPU = find("cpu")
ROUNDS = 10_000
ROUNDS_TRAINED = 3
SEARCHES = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of a round and of the models of all four roles."""

    width: int = 128
    num_layers: int = 4
    num_prompts: int = 16
    samples_per_prompt: int = 2
    prompt_tokens: int = 32
    completion_tokens: int = 32
    num_minibatches: int = 1
    algorithm: str = "ppo"
    num_devices: int = DEVICES

    def work(self) -> Workload:
        model_keys = ("width", "num_layers", "algorithm", "num_devices")
        return Workload(
            **{
                name: value
                for name, value in dataclasses.asdict(self).items()
                if name not in model_keys
            }
        )


SEARCHED = (
    Case(num_layers=2),
    Case(num_layers=2, num_minibatches=2),
    Case(num_layers=2, completion_tokens=8, prompt_tokens=64),
    Case(num_layers=2, width=256),
    Case(num_layers=2, num_prompts=64, width=64),
)


@cache
def make_spec(case: Case) -> tuple[ProgramSpec, Any]:
    """A spec without a plan, and params for the reference.

    No row ends before its last token, so that rounds take alike.
    """
    config = dataclasses.replace(
        gpt_neox.PRESETS["quickstart"],
        vocab_size=512,
        width=case.width,
        num_layers=case.num_layers,
        num_heads=4,
        ffn_width=4 * case.width,
    )
    model = gpt_neox.make(config)
    values = value_head.make(model)
    params = jax.jit(model.init)(jax.random.key(0))
    with_head = values.init_from(params, jax.random.key(1))

    def prompts(round_index: int) -> Prompts:
        random = np.random.default_rng(round_index)
        shape = case.num_prompts, case.prompt_tokens
        ordinals = round_index * case.num_prompts + np.arange(case.num_prompts, dtype=np.int32)
        tokens = random.integers(2, 512, shape, np.int32)
        return Prompts(tokens_PQ=tokens, mask_PQ=np.ones(shape, bool), ordinal_P=ordinals)  # type: ignore[arg-type]

    optimizer = make_optimizer(OptimizerConfig(), ROUNDS)
    module = registry.find("algorithms", case.algorithm)
    algorithm = getattr(module, case.algorithm)(module.Config())
    spec = ProgramSpec(
        model=model,
        algorithm=algorithm,
        optimizer=optimizer,
        sampling=sampling.Config(case.completion_tokens, case.samples_per_prompt),
        scoring=scoring.Config(replace_missing_eos=False),
        reward=Reward(learned.make(values), with_head, values),
        clock=Clock(ROUNDS, case.num_minibatches),
        mesh=mesh.make_mesh(mesh.Config(data=-1)),
        prompts=prompts,
        key=jax.random.key(0),
        seed=0,
        eos_id=-1,
        pad_id=0,
        critic=Critic(values, with_head, optimizer) if "critic" in algorithm.losses else None,
    )
    return spec, params


def make_profile(
    case: Case, path: Path | None, hardware: Hardware = CPU
) -> tuple[tuple[Call, ...], MeasuredCostModel]:
    """The calls and their measured costs.

    Args:
      case: sizes of the round.
      path: of a file of measurements to use again; None: it is not kept.
      hardware: of a device, for what is not measured.
    """
    spec, _ = make_spec(case)
    shape = model_shape(spec.model)
    values = model_shape(value_head.make(spec.model))
    shapes = {"policy": shape, "reference": shape, "reward": values, "critic": values}
    formulas = AnalyticCostModel(hardware, case.num_devices, shapes, case.work())
    return calls_of(spec.algorithm, learned_reward=True), MeasuredCostModel(spec, formulas, path)


def random_plan(
    calls: tuple[Call, ...],
    costs: CostModel,
    seed: int,
    num_devices: int = DEVICES,
    micro_batches: Sequence[int] = (1, 2),
) -> Plan:
    """A feasible placement for every call, each drawn alone: a slice, a mesh shape, micro-batches,
    remat.

    Args:
      calls: of a round.
      costs: say what is feasible.
      seed: of the draw.
      num_devices: of one host.
      micro_batches: numbers to draw from.
    """
    random = np.random.default_rng(seed)
    places = slices(num_devices, num_devices)
    placements = {}
    for call in calls:
        while call.name not in placements:
            devices = places[random.integers(len(places))]
            shapes = mesh_shapes(len(devices), num_devices)
            remat = bool(random.integers(2)) if call.kind == "train" else None
            drawn = Placement(
                devices,
                shapes[random.integers(len(shapes))],
                int(random.choice(micro_batches)),
                remat,
            )
            if costs.refusal(call, drawn) is None:
                placements[call.name] = drawn
    return Plan(placements)


def one_round(spec: ProgramSpec, params: Any, plan: Plan) -> Callable[[], None]:
    """A round of the synchronous loop under a plan, waited for."""
    program = Program(dataclasses.replace(spec, plan=plan), params)
    events = synchronous.run(program, program.init(params), 0, {})

    def run() -> None:
        for event in events:
            if isinstance(event, synchronous.RoundEnd):
                jax.block_until_ready(event.states)
                return

    return run


def memory(case: Case) -> dict[str, Any]:
    """Bytes of a device that a call takes beside params and states, by formulas and as extrapolated
    from one layer and two, over what XLA's `memory_analysis` says of the whole call.
    """
    (spec, _), (calls, profile) = make_spec(case), make_profile(case, None)
    found = {}
    for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
        placement = Placement(tuple(range(int(np.prod(shape)))), shape)
        program = Program(*with_depth(spec, case.num_layers, placement))
        whole = {
            call.name: bytes_of(program.lowered(call.name).compile()) for call in program.calls
        }
        for call in calls:
            taken = time_call(spec, call.name, placement, case.num_layers).working_bytes
            formula = profile.formulas.working_bytes(call, placement)
            ratios = {"profile": taken / whole[call.name], "formulas": formula / whole[call.name]}
            found[f"{call.name} {'x'.join(map(str, shape))}"] = {
                name: round(ratio, 3) for name, ratio in ratios.items()
            }
    sides = {side: [of[side] for of in found.values()] for side in ("profile", "formulas")}
    worst = {
        f"{side}_largest_error": round(max(abs(ratio - 1) for ratio in of), 3)
        for side, of in sides.items()
    }
    return {"case": "memory", **dataclasses.asdict(case), **worst, "ratios": found}


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def estimates(case: Case, num_plans: int, repeats: int, path: Path | None) -> dict[str, Any]:
    """Expected and measured seconds of a round of random plans."""
    (spec, params), (calls, profile) = make_spec(case), make_profile(case, path)
    plans = [random_plan(calls, profile, seed) for seed in range(num_plans)]
    for plan in plans:
        profile.measure(calls, plan)
    expected = [
        simulate.simulate(calls, plan, profile, case.work(), DEVICES).seconds_per_round
        for plan in plans
    ]
    sides = {str(place): one_round(spec, params, plan) for place, plan in enumerate(plans)}
    seconds = measure.interleaved(sides, repeats)
    measured = [min(seconds[str(place)]) for place in range(num_plans)]
    errors = [abs(one / other - 1) for one, other in zip(expected, measured, strict=True)]
    return {
        "case": "estimates",
        **dataclasses.asdict(case),
        "plans": num_plans,
        "median_error": round(float(np.median(errors)), 4),
        "largest_error": round(max(errors), 4),
        "rank_correlation": round(float(np.corrcoef(ranks(expected), ranks(measured))[0, 1]), 4),
        "expected_seconds": [round(value, 4) for value in expected],
        "measured_seconds": [round(value, 4) for value in measured],
        "texts": [text_of(plan) for plan in plans],
    }


def end(program: Program, lag: int) -> Any:
    """The policy's params after a few rounds; at a lag by the loop with a thread."""
    program.spec = dataclasses.replace(program.spec, clock=Clock(ROUNDS_TRAINED, lag=lag))
    loop = asynchronous if lag else synchronous
    *_, last = loop.run(program, program.init(program.reference_params), 0, {})
    return jax.device_get(last.states["policy"].params)


def params(num_plans: int) -> dict[str, Any]:
    """The largest difference of any param under random plans from the same on one device, and how
    far training moved it.
    """
    found = {}
    for name in ("ppo", "online_dpo"):
        case = Case(
            width=16,
            num_layers=1,
            num_prompts=8,
            prompt_tokens=5,
            completion_tokens=7,
            algorithm=name,
        )
        spec, reference = make_spec(case)
        spec = dataclasses.replace(
            spec, optimizer=optax.sgd(0.1), mesh=mesh.make_mesh(mesh.Config())
        )
        if spec.critic is not None:
            spec = dataclasses.replace(
                spec, critic=dataclasses.replace(spec.critic, optimizer=optax.sgd(0.1))
            )
        calls = calls_of(spec.algorithm, learned_reward=True)
        shape, values = model_shape(spec.model), model_shape(value_head.make(spec.model))
        shapes = {"policy": shape, "reference": shape, "reward": values, "critic": values}
        formulas = AnalyticCostModel(find("cpu"), DEVICES, shapes, case.work())
        for lag in (0, 1):
            expected = end(Program(spec, reference), lag)
            moved = difference(expected, jax.device_get(reference))
            worst = 0.0
            for seed in range(num_plans):
                plan = random_plan(calls, formulas, seed)
                worst = max(
                    worst,
                    difference(
                        end(Program(dataclasses.replace(spec, plan=plan), reference), lag), expected
                    ),
                )
            found[f"{name} lag {lag}"] = {"largest_difference": worst, "training_moved": moved}
    return {"case": "params", "plans": num_plans, "rounds": ROUNDS_TRAINED, **found}


def difference(one: Any, other: Any) -> float:
    """The largest of any entry."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def searched(case: Case, repeats: int, path: Path | None) -> dict[str, Any]:
    """The plan that search and profile end at, beside the default that they name, expected and
    measured.
    """
    (spec, reference), (calls, profile) = make_spec(case), make_profile(case, path)
    found = search(calls, profile, case.work(), DEVICES, DEVICES)
    for _ in range(SEARCHES):
        assert found.default is not None
        plans = {"searched": found.best.plan, "default": found.default.plan}
        if not any(profile.missing(calls, plan) for plan in plans.values()):
            break
        for plan in plans.values():
            profile.measure(calls, plan)
        found = search(calls, profile, case.work(), DEVICES, DEVICES)
    assert found.default is not None
    candidates = {"searched": found.best, "default": found.default}
    sides = {name: one_round(spec, reference, one.plan) for name, one in candidates.items()}
    least = {name: min(seconds) for name, seconds in measure.interleaved(sides, repeats).items()}
    expected = {name: one.simulation.seconds_per_round for name, one in candidates.items()}
    return {
        "case": "searched",
        **dataclasses.asdict(case),
        "expected_ratio": round(expected["searched"] / expected["default"], 4),
        "measured_ratio": round(least["searched"] / least["default"], 4),
        **{f"{name}_expected_seconds": round(value, 4) for name, value in expected.items()},
        **{f"{name}_measured_seconds": round(value, 4) for name, value in least.items()},
        "advised": "default" if found.advised is found.default else "searched",
        "plan": text_of(found.best.plan),
        "default": text_of(found.default.plan),
    }


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--plans", type=int, default=20, help="random plans")
    parser.add_argument("--profile", type=Path, help="a file of measurements to use again")
    options: argparse.Namespace = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    load = os.getloadavg()
    cases = []
    if options.only in "estimates":
        cases.append(estimates(Case(), options.plans, options.repeats, options.profile))
    if options.only in "params":
        jax.config.update("jax_disable_most_optimizations", True)
        cases.append(params(options.plans))
        jax.config.update("jax_disable_most_optimizations", False)
    if options.only in "memory":
        cases.append(memory(Case()))
    if options.only in "searched":
        for case in SEARCHED:
            cases.append(searched(case, options.repeats, options.profile))
            print(json.dumps(cases[-1]), file=sys.stderr, flush=True)  # each takes minutes
    measure.report("plans", cases, load, options.output)


if __name__ == "__main__":
    main()
