"""Writes `docs/scale/compiled_slices.md`: what libtpu says of deep models and of slices of several
hosts, beside what the planner expects.

    python -m experiments.bench.slices_page

No libtpu is needed: the compiler's figures are those that `experiments.bench.slices` has kept; the
planner's are of today.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.bench import slices
from experiments.studies.markdown import table
from rlhf_jax.building.from_shapes import Shaped, shaped
from rlhf_jax.cli.tables.compile import placements
from rlhf_jax.dataflow import Call
from rlhf_jax.devices import topology
from rlhf_jax.planner.costs import hardware
from rlhf_jax.planner.problem import Problem
from rlhf_jax.types import Placement, Plan

PAGE = Path(__file__).parents[2] / "docs" / "scale" / "compiled_slices.md"
UPDATE, GATHER = "train_policy", "gather"
KEYS = "working_bytes", "link_bytes", "network_bytes"


def line_of(name: str, call: str) -> dict[str, Any] | None:
    """The last figures of a case's call at the case's depth."""
    found = [
        line
        for line in slices.read_figures()
        if (line["case"], line["call"], line["layers"]) == (name, call, slices.CASES[name].layers)
    ]
    return found[-1] if found and not found[-1]["reason"] else None


@cache
def made(name: str) -> Shaped:
    """A case's round, made for CPU devices."""
    case = slices.CASES[name]
    devices = topology.devices_by_host(topology.parse("cpu:16x4")).reshape(-1)
    used = devices[: topology.parse(case.topology).num_devices].reshape(case.num_hosts, -1)
    return shaped(slices.config_of(case), used, case.layers)


def problem(name: str) -> Problem:
    """A case as the planner sees it on its slice, without a gold model, which is not compiled."""
    found = made(name).problem
    kind = hardware.find(f"tpu-{topology.parse(slices.CASES[name].topology).kind}")
    if found.num_hosts > 1:
        kind = hardware.in_slice(kind, found.devices_of_host)
    return dataclasses.replace(found, hardware=kind, gold=None)


def placed(name: str) -> dict[str, tuple[Call, Placement]]:
    """The calls of a case with their placements on a host's devices."""
    places = placements(made(name))
    return {call.name: (call, places[call.name]) for call in problem(name).calls}


def formula(name: str) -> float:
    """Bytes on links of a device in an update of n micro-batches on k devices that share P params:
    n · (k − 1)/k · (2 · 2P + 4P).
    """
    of, (_, placement) = problem(name), placed(name)[UPDATE]
    shards = of.num_devices
    each = (shards - 1) / shards * (2 * 2 + 4) * of.shapes["policy"].num_params
    return placement.num_micro_batches * each


def _depths() -> str:
    head = ["model", "CPU-seconds", "times two layers", "arguments", "temporary", "planner",
            "links", "planner, links", "formula", "program"]  # fmt: skip
    rows = []
    two = line_of("410m-2-layers", UPDATE)
    for name in ("410m-2-layers", "410m", "410m-float32"):
        case = slices.CASES[name]
        line = line_of(name, UPDATE)
        if line is None or two is None:
            continue
        costs, (call, placement) = problem(name).placed_costs(), placed(name)[UPDATE]
        rows.append(
            [
                case.about,
                f"{line['cpu_seconds']:.0f}",
                f"{line['cpu_seconds'] / two['cpu_seconds']:.2f}",
                _gigabytes(line["argument_bytes"]),
                _gigabytes(line["temporary_bytes"]),
                _gigabytes(costs.working_bytes(call, placement)),
                _gigabytes(line["link_bytes"]),
                _gigabytes(costs.link_bytes(call, placement)),
                _gigabytes(formula(name)),
                f"`{line['fingerprint']}`",
            ]
        )
    return table(head, rows)


def _several() -> list[str]:
    """The cases on slices of several hosts."""
    return [name for name in slices.CASES if made(name).problem.num_hosts > 1]


def _calls() -> str:
    head = ["model", "slice", "call", "beside arguments", "planner", "links", "planner, links",
            "formula", "how", "program"]  # fmt: skip
    rows = []
    for name in _several():
        case, costs = slices.CASES[name], problem(name).placed_costs()
        for call_name in case.calls:
            planned, found = placed(name).get(call_name), line_of(name, call_name)
            figures, how, program = dict.fromkeys(KEYS), "formula", "–"
            if found is not None:
                how = "compiled, older program" if found.get("older") else "compiled"
                figures, program = found, f"`{found['fingerprint']}`"
            expected = ["–", "–"]
            if planned is not None:
                expected = [
                    _gigabytes(costs.working_bytes(*planned)),
                    _gigabytes(costs.link_bytes(*planned)),
                ]
            cells = [_gigabytes(figures["working_bytes"]), expected[0]]
            cells += [_gigabytes(figures["link_bytes"]), expected[1]]
            cells.append(_gigabytes(formula(name)) if call_name == UPDATE else "–")
            where = case.topology_of(call_name) if found else case.topology
            rows.append([case.about, where, call_name, *cells, how, program])
    return table(head, rows)


@dataclass(frozen=True)
class Held:
    """Bytes that a device holds of a case at its fullest moment.

    Attributes:
      state: float32 params and Adam's moments.
      frozen: params that are not trained.
      versions: published ones that an update finds.
      needs: what each call needs beside these, with the further versions that are there while it runs;
        by the compiler, else by the planner.
      compiled: the calls that are known by the compiler.
      memory: of the device; `usable` of it may be used.
    """

    state: float
    frozen: float
    versions: float
    needs: Mapping[str, float]
    compiled: frozenset[str]
    memory: float
    usable: float

    @property
    def fullest(self) -> str:
        """The call that needs most."""
        return max(self.needs, key=self.needs.__getitem__)

    @property
    def stays(self) -> float:
        """Bytes that stay while calls come and go."""
        return self.state + self.frozen + self.versions

    @property
    def total(self) -> float:
        """Bytes of the fullest moment."""
        return self.stays + self.needs[self.fullest]

    @property
    def fits(self) -> str:
        """The answer to whether the case fits, in words."""
        if self.total <= self.usable:
            return "yes"
        return "with less than 8 % left" if self.total <= self.memory else "no"


@cache
def held(name: str) -> Held | None:
    """The memory of a case; None where its update was not compiled."""
    of = problem(name)
    costs, plan = of.placed_costs(), Plan({call: at for call, (_, at) in placed(name).items()})
    known = {
        call: found["working_bytes"]
        for call in slices.CASES[name].calls
        if (found := line_of(name, call))
    }
    if UPDATE not in known:
        return None
    state = costs.state_bytes("policy", plan.placements[UPDATE])
    version = costs.params_bytes("policy", plan.placements["generate"])
    versions = of.work.versions.in_training * version
    needs = {
        call_name: known.get(call_name, costs.working_bytes(call, placement))
        + of.further_bytes(call, placement)
        for call_name, (call, placement) in placed(name).items()
    }
    if GATHER in known:  # the new version is a result of it, and those of sampling are there
        further = of.work.versions.most - 1 - of.work.versions.in_training
        needs[GATHER] = known[GATHER] + further * version
    return Held(
        state=state,
        frozen=of.resident_bytes(plan) - state - versions,
        versions=versions,
        needs=needs,
        compiled=frozenset(known),
        memory=of.hardware.memory_bytes,
        usable=costs.device_bytes,
    )


def _memory() -> str:
    """A table of what a device holds of each case, and the most that a call needs beside it."""
    head = ["model", "slice", "state", "frozen", "versions", "fullest call", "beside what stays",
            "in all", "of a device", "fits"]  # fmt: skip
    rows = []
    for name in _several():
        of = held(name)
        if of is None:
            continue
        worst = of.fullest + ("" if of.fullest in of.compiled else " (formula)")
        cells = [_gigabytes(each) for each in (of.state, of.frozen, of.versions)]
        rows.append(
            [slices.CASES[name].about, slices.CASES[name].topology, *cells, worst,
             _gigabytes(of.needs[of.fullest]), _gigabytes(of.total), f"{of.memory / 1e9:.0f}", of.fits]
        )  # fmt: skip
    return table(head, rows)


def _findings() -> str:
    """Sentences on 5 and 32 billion params, with the figures of today."""
    one, four, large = held("5b-one-part"), held("5b"), held("32b")
    assert one is not None
    assert four is not None
    assert large is not None
    costs = {name: problem(name).placed_costs() for name in ("5b", "5b-one-part")}
    less = {
        name: (line_of(name, UPDATE) or {})["working_bytes"]
        - costs[name].working_bytes(*placed(name)[UPDATE])
        for name in costs
    }
    left = 1 - one.total / one.memory
    said = {
        name: "fit" if of.fits == "yes" else "do not fit"
        for name, of in (("5b", one), ("32b", large))
    }
    too_much = ", too much" if four.fits == "no" else ""
    return (
        f"**5 billion params on 4 hosts of v5e {said['5b']} at lag 1** in "
        f"one part of 16 prompts × 4, with bfloat16 gradients: {_gigabytes(one.total)} of "
        f"{one.memory / 1e9:.0f} GB, which leaves {100 * left:.0f} %, in an update. Publishing takes "
        f"{_gigabytes(one.stays + four.needs[GATHER])} GB, by the gather of the case above it. {_by_formula(one)}"
        f"Four parts of 64 prompts with float32 gradients take "
        f"{_gigabytes(four.total)} GB{too_much}. The planner expects {_gigabytes(less['5b'])} GB less of that update "
        f"than the compiler, and {_gigabytes(less['5b-one-part'])} GB less of the one in one part: more than the "
        f"8 % of a chip that it is held to elsewhere. Why was not found out.\n\n"
        f"**32 billion on 16 hosts of v5p {said['32b']}**, {_gigabytes(large.total)} of {large.memory / 1e9:.0f} GB, "
        "with a sampler inside each host.\n\n"
    )


def _by_formula(of: Held) -> str:
    """A sentence on the calls that were not compiled; none where all were."""
    names = [f"`{name}`" for name in of.needs if name not in {*of.compiled, GATHER}]
    return f"Not compiled, and known by formula alone: {', '.join(names)}. " if names else ""


def _commands() -> str:
    return "\n".join(f"* {case.about}: `{case.command}`" for case in slices.CASES.values())


def _gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e9:.3g}"


def page() -> str:
    """The page as Markdown."""
    return "".join(
        [PREAMBLE, _depths(), SEVERAL, _calls(), MEMORY, _memory(), "\n\n", _findings(), NOTES]
        + [_commands(), END]
    )


PREAMBLE = """# What the compiler says of deep models and of several hosts

**Does a model with many layers compile in minutes, and does one that is larger than a host fit on a
slice?**

GB of 10⁹ bytes a device. An update of Pythia 410m (Online DPO on TL;DR, 512 prompts × 2, 512 + 53 tokens)
on v5e:2x4, in 8 micro-batches with `model.remat=True`. Two layers are unrolled; 24 are in a scan
(`model.scan_layers=12`). CPU-seconds are of the whole command, most of it libtpu.

"""

SEVERAL = """

"Formula" is `n · (k − 1)/k · (2 · 2P + 4P)`: in each of n micro-batches on k devices, P params gathered
twice in bfloat16, and their gradients reduced and scattered once in float32. A prompt that is run once
for several rows has its layers gathered for the prompts and for the completions, twice the bytes.

## Several hosts

The hosts share one copy of the params (`mesh.fsdp_hosts=-1`). A host of these slices has four chips.
Sampling is inside a host, with `tensor=4`. `gather` brings the params together on each host, for
publishing. All bytes on links are of collectives between hosts, but those of sampling, which are inside
one; chips of all hosts of a slice have the same links.

"""

MEMORY = """

Each program has all layers of its model. Sampling, whose layers are unrolled, is compiled for one host of
the slice: libtpu compiles no program for 4 chips of a larger slice, and the program of the 4 chips of a
slice of one host is the same text (`tests/test_bench_slices.py`).

What stays on a device is the planner's figure: the state (float32 params and Adam's moments), the
frozen reference in bfloat16, and the version of the policy that an update finds at lag 1, whole on the chips of a
host. While a round is sampled there may be one more, and while params are gathered the new one.

"""

NOTES = """## What was learned

* libtpu makes a whole sum on every device of a scattered sum (`psum_scatter`) over devices in two or three
  dimensions of a slice, and of a gather over devices in three. Along a ring it does not. So params and gradients
  that hosts share are gathered inside each host and then over the hosts, and summed in the opposite order
  (`ops/row_shards.py`). The update of 32 billion params sent 513 GB with sums alone in two turns, and needed
  18.3 GB beside its arguments; with both it sends 258 GB and needs 11.3 GB.
* Calls that score are left to libtpu, which passes shards of params around rings. `reference` of 5 billion
  params sends more than twice the bytes that the planner expects; this is not mended.
* Params that are sharded over hosts are gathered by the devices that need the same part
  (`devices/transfer/per_host.py`). Gathered whole on each device, as before, 5 billion params took
  10.1 GB beside the arguments and 9.5 GB on links.
* `rlhf.share_prompts=False` halves the bytes on links of an update whose layers are gathered over hosts.
  It computes a prompt once for each of its rows.

The figures are in `experiments/bench/results/compile_slices.jsonl`. `python -m experiments.bench.slices`
compiles each program that has none yet (`pip install 'rlhf_jax[tpu-compile]'`), and
`python -m experiments.bench.slices_page` writes this page. Not run here: these commands take minutes of
libtpu. Nothing ran on a TPU. The same by the command, where plans of several calls are one argument:

"""

END = "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
