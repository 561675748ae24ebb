"""ReaLHF's 36 published settings in our estimator: PPO with four LLaMA-2 roles on 8 to 128 GPUs
that nobody here has.

Seconds of an iteration as we simulate them beside those that the paper shows (Mei et al. 2024,
arXiv 2406.14088v1; read off its throughput figure). *The estimator's check*: their heuristic plan,
every call on all GPUs one after the other, tensor parallel over the 8 GPUs of a node and a pipeline
across nodes; and with fsdp in the pipeline's place, which is what we have.

* Hardware: A100 80GB, which is not verified (their cost model has nodes of 8 GPUs of 80 GiB and 200
  Gb/s between nodes). We take 200 Gb/s as each GPU's own, as in nodes with an adapter a GPU and as
  their estimator charges each rank.
* float16 params, products and gradients, 20 bytes a param of the optimizer's; remat; prompts of 128
  tokens, completions forced to 128, 384 or 896, 4 minibatches. Attention is taken to hold no
  scores, and decoding to read the cache as it grows.
* Calibrated, on the heuristic's 36 seconds alone and once for all of them (`--calibrate`): the
  share of the peak that products reach, and the latency of a collective, which in their engine
  holds the waiting of 8 processes for each other twice a layer. Ratios below are therefore
  in-sample, of two constants. `held_out` fits them to one sweep and checks the other two.
* With tensor 8 everywhere the latency cannot be told from other costs of a layer and step: plans
  with smaller tensor axes are faster in this simulation than in an engine whose launches cost as
  much. The share of communication, which nothing is fitted to, is printed beside the paper's.

*The searched plan*, in the synchronous loop, beside the paper's searched plan: ours may use data,
fsdp and tensor axes, any slices, micro-batches, and leave remat out; theirs has pipelines, and
remat always. An optimum found in one's own simulator flatters itself, all the more where the
simulator was never held against a plan of that kind: fsdp with full bandwidth and no waiting, and
no latency at all where a call has no tensor axis. Simulated gains are no measurement, and the
paper's are.

    python -m experiments.bench.realhf_settings --output experiments/bench/results/realhf_settings.json
"""

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from experiments.bench import measure
from rlhf_jax.dataflow import Call
from rlhf_jax.devices.placement import text_of
from rlhf_jax.planner.api import Workload
from rlhf_jax.planner.costs import roofline, shapes
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.costs.hardware import Hardware, find
from rlhf_jax.planner.costs.roofline import Positions
from rlhf_jax.planner.search.search import search
from rlhf_jax.types import Placement

NODE = 8
PROMPT = 128
BATCH = {128: 512, 384: 256, 896: 128}  # by completion length, so that a round has 2^17 tokens
MODELS = {"7B": "llama-2-7b", "13B": "llama-2-13b", "34B": "codellama-34b", "70B": "llama-2-70b"}
CALIBRATED = {"matmul_efficiency": 0.55, "collective_latency": 600e-6}

MAX_NODES = 3000  # of the exact search, on 8 and 16 GPUs

CALLS = (
    Call("generate", "policy", "generate", ("prompts",), ("samples",)),
    Call("reward", "reward", "infer", ("samples",), ("reward",), per_token=False),
    Call("reference", "reference", "infer", ("samples",), ("reference_logprob",)),
    Call("value", "critic", "infer", ("samples",), ("value",)),
    Call(
        "train_policy", "policy", "train", ("samples", "reward", "reference_logprob", "value"), ()
    ),
    Call(
        "train_critic", "critic", "train", ("samples", "reward", "reference_logprob", "value"), ()
    ),
)

# GPUs of a setting, and seconds of an iteration by completion length (128, 384, 896): their
# heuristic's, their searched plan's.
PAPER = {
    ("actor", "7B", "7B", 8): ((31.3, 23.3), (42.3, 28.0), (63.3, 37.4)),
    ("actor", "13B", "7B", 16): ((30.1, 24.3), (42.6, 31.3), (69.1, 44.2)),
    ("actor", "34B", "7B", 32): ((34.0, 29.2), (50.5, 46.7), (84.7, 77.4)),
    ("actor", "70B", "7B", 64): ((43.7, 41.6), (71.6, 65.9), (129.0, 123.8)),
    ("critic", "7B", "7B", 8): ((31.3, 23.3), (42.3, 28.0), (63.3, 37.4)),
    ("critic", "7B", "13B", 16): ((28.5, 20.8), (37.9, 24.6), (57.5, 34.3)),
    ("critic", "7B", "34B", 32): ((30.7, 26.7), (41.9, 29.4), (67.9, 43.4)),
    ("critic", "7B", "70B", 64): ((33.0, 29.8), (49.8, 37.8), (77.8, 43.4)),
    ("both", "7B", "7B", 16): ((24.0, 14.6), (35.3, 23.2), (58.2, 34.3)),
    ("both", "13B", "13B", 32): ((27.1, 23.7), (38.5, 27.3), (67.8, 42.9)),
    ("both", "34B", "34B", 64): ((33.7, 29.5), (60.0, 48.8), (89.9, 77.6)),
    ("both", "70B", "70B", 128): ((47.6, 38.4), (78.9, 71.9), (144.0, 118.7)),
}

# Share of the heuristic's GPU time that goes to communication with completions of 896 tokens, by
# actor and critic (its figure 10, as another reader of it measured): nothing is fitted to it.
COMMUNICATION = {
    ("7B", "7B", 8): 0.55,
    ("7B", "13B", 16): 0.61,
    ("7B", "34B", 32): 0.68,
    ("7B", "70B", 64): 0.79,
    ("13B", "7B", 16): 0.62,
    ("34B", "7B", 32): 0.65,
    ("70B", "7B", 64): 0.74,
}


@dataclass(frozen=True)
class Setting:
    """A row of the paper's figure."""

    sweep: str
    actor: str
    critic: str
    num_devices: int
    completion: int
    heuristic_seconds: float
    searched_seconds: float

    @property
    def work(self) -> Workload:
        """A round of it; every completion has all of its tokens."""
        return Workload(BATCH[self.completion], 1, PROMPT, self.completion, num_minibatches=4)


SETTINGS = tuple(
    Setting(*key, completion, *seconds)
    for key, by_length in PAPER.items()
    for completion, seconds in zip(BATCH, by_length, strict=True)
)


@cache
def shape(size: str, values: bool) -> shapes.Shape:
    """A role's model in float16."""
    found = shapes.named(MODELS[size])
    return replace(
        found, param_bytes=2, copy_bytes=2, compute_bytes=2, values=values, attention="cudnn"
    )


def machine(**calibrated: float) -> Hardware:
    """The GPU of the settings."""
    return replace(find("a100-80gb"), **(calibrated or CALIBRATED))


def costs(setting: Setting, hardware: Hardware) -> AnalyticCostModel:
    """Costs of the calls of a setting on any mesh of data, fsdp and tensor."""
    policy, judge = shape(setting.actor, False), shape(setting.critic, True)
    roles = {"policy": policy, "reference": policy, "critic": judge, "reward": judge}
    options: dict[str, Any] = {"optimizer_bytes": 20.0, "cache_grows": True, "rows_stay": True}
    return AnalyticCostModel(hardware, setting.num_devices, roles, setting.work, **options)


def pipeline_seconds(costs: AnalyticCostModel, call: Call, num_stages: int) -> float:
    """A call with tensor 8 in each node and a pipeline of so many nodes, by ReaL's formulas.

    With s stages, m micro-batches and C seconds of a micro-batch in one stage: (s + m − 1) C; m is
    s, in training 2 s. Each decoding step passes every micro-batch through every stage once: m C. A
    stage is taken to have an even part of all layers and of the head, and gives hidden states to
    the next over the network.
    """
    work, hardware = costs.work, costs.hardware
    part = costs.part(call, Placement(tuple(range(NODE)), (1, 1, NODE)))
    rows = work.num_prompts // (work.num_minibatches if call.kind == "train" else 1)
    num_parts = 1 if num_stages == 1 else 2 * num_stages if call.kind == "train" else num_stages
    rows = rows / num_parts
    waves = num_stages + num_parts - 1

    def hop(run: Positions) -> float:
        if num_stages == 1:
            return 0.0
        moved = run.tokens * part.shape.width * part.shape.compute_bytes / NODE
        return (
            moved / (hardware.link_efficiency * hardware.network_bandwidth)
            + hardware.collective_latency
        )

    def stage(run: Positions) -> float:
        return roofline.forward_seconds(part, run) / num_stages + hop(run)

    if call.kind == "infer":
        return waves * stage(costs.positions(call, part, rows))
    if call.kind == "train":
        run = costs.positions(call, part, rows)
        both = stage(run) + roofline.backward_seconds(part, run, remat=True) / num_stages + hop(run)
        return work.num_minibatches * (
            waves * both + roofline.optimizer_seconds(part, costs.optimizer_bytes) / num_stages
        )
    return waves * stage(costs.prefill(part, rows)) + num_parts * _decode_seconds(work, rows, stage)


def _decode_seconds(work: Workload, rows: float, stage: Any) -> float:
    """Decoding seconds of one micro-batch in one stage, over all steps."""
    seen = work.prompt_tokens + work.completion_tokens / 2
    return (work.completion_tokens - 1) * stage(Positions(rows, rows * seen, rows, rows * seen))


def heuristic_seconds(setting: Setting, hardware: Hardware) -> float:
    """Their heuristic: every call on all GPUs, one after the other."""
    of_setting = costs(setting, hardware)
    return sum(pipeline_seconds(of_setting, call, setting.num_devices // NODE) for call in CALLS)


def fsdp_seconds(setting: Setting, hardware: Hardware) -> float:
    """The same with fsdp across nodes."""
    of_setting = costs(setting, hardware)
    place = Placement(
        tuple(range(setting.num_devices)), (1, setting.num_devices // NODE, NODE), remat=True
    )
    return sum(of_setting.seconds(call, place) for call in CALLS)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with the mean rank for equal values."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        array = np.asarray(values)
        return np.asarray(
            [(array < value).sum() + ((array == value).sum() + 1) / 2 for value in array]
        )

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def check(simulated: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Compares simulated with measured seconds: mean and spread of their ratios, and rank
    correlation.
    """
    logs = np.log(np.asarray(simulated) / np.asarray(measured))
    return {
        "geometric_mean_ratio": round(float(np.exp(logs.mean())), 3),
        "least_ratio": round(float(np.exp(logs.min())), 3),
        "largest_ratio": round(float(np.exp(logs.max())), 3),
        "typical_factor": round(float(np.exp(np.sqrt((logs**2).mean()))), 3),
        "rank_correlation": round(rank_correlation(simulated, measured), 3),
    }


def calibrate(settings: Sequence[Setting] = SETTINGS) -> dict[str, float]:
    """The two constants that bring the heuristic's simulated seconds closest to the paper's, by
    squared logarithms.
    """
    paper = np.asarray([setting.heuristic_seconds for setting in settings])

    def error(constants: tuple[float, float]) -> float:
        hardware = machine(matmul_efficiency=constants[0], collective_latency=constants[1])
        simulated = np.asarray([heuristic_seconds(setting, hardware) for setting in settings])
        return float((np.log(simulated / paper) ** 2).mean())

    grid = itertools.product(
        np.arange(0.2, 0.81, 0.05).round(2), (np.arange(50, 901, 50) * 1e-6).round(6)
    )
    efficiency, latency = min(grid, key=error)
    return {"matmul_efficiency": float(efficiency), "collective_latency": float(latency)}


def name(setting: Setting) -> str:
    """Sweep, actor and critic, completion tokens, GPUs."""
    return f"{setting.sweep} {setting.actor}+{setting.critic} {setting.completion} on {setting.num_devices}"


def heuristic_case(setting: Setting, hardware: Hardware) -> dict[str, Any]:
    """A setting's heuristic, simulated and published."""
    simulated = heuristic_seconds(setting, hardware)
    return {
        "case": name(setting),
        "paper_heuristic_seconds": setting.heuristic_seconds,
        "simulated_heuristic_seconds": round(simulated, 2),
        "ratio": round(simulated / setting.heuristic_seconds, 3),
        "simulated_fsdp_seconds": round(fsdp_seconds(setting, hardware), 2),
    }


def communication_case(setting: Setting, hardware: Hardware) -> dict[str, Any]:
    """The share of a heuristic's seconds that links of no latency and no end of bandwidth would
    save, and the paper's.
    """
    free = replace(
        hardware,
        collective_latency=0.0,
        link_bandwidth=float("inf"),
        network_bandwidth=float("inf"),
    )
    share = 1.0 - heuristic_seconds(setting, free) / heuristic_seconds(setting, hardware)
    return {
        "case": f"communication {name(setting)}",
        "paper_share": COMMUNICATION[setting.actor, setting.critic, setting.num_devices],
        "simulated_share": round(share, 3),
    }


def held_out(sweep: str) -> dict[str, Any]:
    """The check of the two sweeps whose settings differ from those of the one that the constants
    are fitted to.
    """
    constants = calibrate([setting for setting in SETTINGS if setting.sweep == sweep])
    others = [
        s
        for s in SETTINGS
        if s.sweep != sweep and (s.actor, s.critic, s.num_devices) != ("7B", "7B", NODE)
    ]
    simulated = [heuristic_seconds(setting, machine(**constants)) for setting in others]
    found = check(simulated, [setting.heuristic_seconds for setting in others])
    return {
        "case": f"held out from {sweep}",
        "calibrated": constants,
        "settings": len(others),
        **found,
    }


def searched_case(setting: Setting, hardware: Hardware) -> dict[str, Any]:
    """The best plan that our search finds for a setting, simulated, and the paper's measured one."""
    began = time.perf_counter()
    found = search(
        CALLS,
        costs(setting, hardware),
        setting.work,
        setting.num_devices,
        NODE,
        num_best=1,
        max_nodes=MAX_NODES,
    )
    seconds, default = found.best.simulation.seconds_per_round, found.default
    simulated = heuristic_seconds(setting, hardware)
    return {
        "case": f"search {name(setting)}",
        "num_devices": setting.num_devices,
        "paper_searched_seconds": setting.searched_seconds,
        "simulated_searched_seconds": round(seconds, 2),
        "simulated_one_mesh_seconds": round(default.simulation.seconds_per_round, 2)
        if default
        else None,
        "paper_gain": round(setting.heuristic_seconds / setting.searched_seconds - 1, 3),
        "simulated_gain": round(simulated / seconds - 1, 3),
        "proven": found.proven,
        "search_seconds": round(time.perf_counter() - began, 1),
        "plan": text_of(found.best.plan),
    }


def gains(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean gains of searched plans over the heuristic: plain, and weighted by the number of GPUs."""
    weights = [case["num_devices"] for case in cases]
    means = {}
    for side in ("paper", "simulated"):
        values = [case[f"{side}_gain"] for case in cases]
        means[f"{side}_gain_plain"] = round(float(np.mean(values)), 3)
        means[f"{side}_gain_weighted"] = round(float(np.average(values, weights=weights)), 3)
    simulated, paper = (
        [case[f"{side}_searched_seconds"] for case in cases] for side in ("simulated", "paper")
    )
    return {"case": "all searched plans", **means, **check(simulated, paper)}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument(
        "--calibrate", action="store_true", help="print the constants that fit the heuristic best"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="the estimator's check alone: seconds, not minutes"
    )
    options = parser.parse_args()
    if options.calibrate:
        print(calibrate())
        return
    load, hardware = os.getloadavg(), machine()
    cases = [heuristic_case(setting, hardware) for setting in SETTINGS]
    simulated = [case["simulated_heuristic_seconds"] for case in cases]
    summary = check(simulated, [setting.heuristic_seconds for setting in SETTINGS])
    cases.append({"case": "all heuristics", "calibrated": CALIBRATED, **summary})
    if not options.no_search:
        searched = [searched_case(setting, hardware) for setting in SETTINGS]
        cases += [*searched, gains(searched)]
    cases += [held_out(sweep) for sweep in ("actor", "critic", "both")]
    shown = [s for s in SETTINGS if s.sweep != "both" and s.completion == 896]
    by_models = {(s.actor, s.critic, s.num_devices): communication_case(s, hardware) for s in shown}
    cases += by_models.values()
    measure.report("realhf_settings", cases, load, options.output)


if __name__ == "__main__":
    main()
