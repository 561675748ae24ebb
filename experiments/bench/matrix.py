"""Compiles the calls of each recipe for the TPUs that its docstring names, at two layers and at four,
and keeps what the compiler says.

    python -m experiments.bench.matrix --index      # no libtpu: plans and fingerprints of today
    python -m experiments.bench.matrix              # compiles each program that has no figures yet
    python -m experiments.bench.matrix --only=tldr-410m,notebooks --calls=train_policy --layers=24
    python -m experiments.bench.matrix --stale      # no libtpu: rows whose program is another one

The index (`results/compile_matrix.json`) has for each recipe the plan that `plan=fit` chooses, and
for each call and depth a fingerprint of the program that it lowers to. The figures
(`results/compile_matrix.jsonl`) have a line for each distinct program and topology: a program that
has one is not compiled again. A line is written as soon as its program is compiled, so that a
stopped command goes on where it was. `matrix_page.py` writes the page.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.devices import topology
from rlhf_jax.planner.problem import Problem

RESULTS = Path(__file__).parent / "results"
INDEX, FIGURES = RESULTS / "compile_matrix.json", RESULTS / "compile_matrix.jsonl"
DEPTHS = 2, 4
"""Layers of the reduced models; a figure at any other depth lies on the line through these two."""
CALLS = (
    "train_policy", "generate", "reference", "reward", "proximal", "train_critic", "value",
)  # fmt: skip
"""By worth; `credit` and `publish` take no memory and no links beside these."""
FIELDS = (
    "argument_bytes", "output_bytes", "temporary_bytes", "alias_bytes", "donated_bytes", "flops",
    "accessed_bytes", "fingerprint",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A recipe on a topology.

    Attributes:
      config: as the option `--config` of a run.
      slice: of TPUs.
      device: the slice's kind of device in the planner's table.
      depths: reduced layers; one where it is the whole model's.
    """

    config: str
    slice: str
    device: str
    depths: tuple[int, ...] = DEPTHS

    @property
    def num_devices(self) -> int:
        """Devices of the slice."""
        return topology.parse(self.slice).num_devices


CASES = {
    "tldr-410m": Case("configs/tldr/online_dpo.py:size=410m", "v5e:2x4", "tpu-v5e"),
    "tldr-1b": Case("configs/tldr/online_dpo.py:size=1b", "v5e:2x4", "tpu-v5e"),
    "gsm8k": Case("configs/gsm8k/online_dpo.py", "v5e:2x4", "tpu-v5e"),
    "tldr-2.8b": Case("configs/tldr/online_dpo.py:size=2.8b", "v6e:2x4", "tpu-v6e"),
    "ultrafeedback": Case("configs/ultrafeedback/grpovi.py", "v6e:2x4", "tpu-v6e"),
    "no_robots-8b": Case("configs/no_robots/online_dpo.py", "v5p:2x2x1", "tpu-v5p"),
    # Models of the notebooks 01 and 02, 04, and 05, in rounds that are no smaller than theirs.
    "notebook-01": Case("configs/quickstart.py:algorithm=online_dpo", "v5e:1x1", "tpu-v5e", (2,)),
    "notebook-04": Case("configs/tiny.py:algorithm=grpo", "v5e:1x1", "tpu-v5e", (1,)),
    "notebook-05": Case("configs/tiny.py:algorithm=ppo", "v5e:1x1", "tpu-v5e", (1,)),
}


@dataclass(frozen=True)
class Program:
    """A lowered program of the index.

    Attributes:
      case: a key of `CASES`.
      call: its name.
      layers: of every model.
      fingerprint: of the lowered program.
    """

    case: str
    call: str
    layers: int
    fingerprint: str


def read_index() -> dict[str, Any]:
    """The index: a plan, whole depths, and fingerprints by call and layers, for each case."""
    return json.loads(INDEX.read_text()) if INDEX.exists() else {}


def read_figures() -> dict[tuple[str, str], dict[str, Any]]:
    """Figures of compiled programs by slice and fingerprint; the last line of each counts."""
    if not FIGURES.exists():
        return {}
    lines = [json.loads(line) for line in FIGURES.read_text().splitlines()]
    return {(line["slice"], line["fingerprint"]): line for line in lines}


def programs(index: Mapping[str, Any]) -> list[Program]:
    """The programs of an index, those of most worth first."""
    found = [
        Program(name, call, int(layers), fingerprint)
        for name, case in index.items()
        for call, depths in case["programs"].items()
        for layers, fingerprint in depths.items()
    ]
    names = list(CASES)
    return sorted(
        (each for each in found if each.case in CASES),
        key=lambda each: (CALLS.index(each.call), names.index(each.case), each.layers),
    )


def config_of(case: Case, plan: str | None = None) -> Any:
    """The config of a case; with `plan` in place of the recipe's own."""
    from rlhf_jax.cli import run

    given = [] if plan is None else [f"--config.plan={plan}"]
    return run.parse(["", f"--config={case.config}", *given])


def problem_of(case: Case) -> Problem:
    """A case as the planner sees it, without its gold model, which is no call that is compiled."""
    from rlhf_jax import build
    from rlhf_jax.planner.costs import hardware

    found = build.problem(config_of(case), hardware.find(case.device), case.num_devices)
    return dataclasses.replace(found, gold=None)


def plan_of(case: Case) -> tuple[str, dict[str, int]]:
    """The plan that `plan=fit` chooses for the whole models, and the layers of each role."""
    _devices(case)  # as many as are needed, before others ask for one
    from rlhf_jax.devices.placement import text_of
    from rlhf_jax.types import Placement

    count = case.num_devices
    problem = problem_of(case)
    plan = problem.fit(Placement(tuple(range(count)), (1, count, 1)))
    roles = {call.role for call in problem.calls}
    return text_of(plan), {role: problem.shapes[role].num_layers for role in sorted(roles)}


def lowered(case: Case, plan: str, layers: int, calls: Sequence[str] = CALLS) -> dict[str, str]:
    """Fingerprints of a case's programs by call, lowered for TPUs on CPU devices: no libtpu."""
    from rlhf_jax.building.from_shapes import shaped
    from rlhf_jax.planner.compiled.reading import fingerprint

    found = shaped(config_of(case, plan), _devices(case), layers)
    return {
        call: fingerprint(found.program.lowered(call, platform="tpu"))
        for call in found.program.compiled_names
        if call in calls
    }


def _devices(case: Case) -> list:
    """CPU devices that a case is lowered on: eight, as the tests have, for every case."""
    return topology.devices(topology.parse("cpu:8"))[: case.num_devices]


def index_of(name: str, extra: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The entry of a case in the index.

    Args:
      name: a key of `CASES`.
      extra: further depths by call.
    """
    case = CASES[name]
    plan, roles = plan_of(case)
    found: dict[str, dict[str, str]] = {}
    for layers in sorted({*case.depths, *(depth for each in extra.values() for depth in each)}):
        calls = (
            CALLS if layers in case.depths else [call for call in extra if layers in extra[call]]
        )
        for call, value in lowered(case, plan, layers, calls).items():
            found.setdefault(call, {})[str(layers)] = value
    return {"plan": plan, "layers": roles, "programs": found}


def extra_depths(index: Mapping[str, Any], name: str) -> dict[str, list[int]]:
    """Depths of a case's calls beside the reduced ones, such as a whole model's."""
    entries = index.get(name, {}).get("programs", {})
    return {
        call: [int(layers) for layers in depths if int(layers) not in CASES[name].depths]
        for call, depths in entries.items()
    }


def stale(names: Sequence[str], quick: bool = False) -> Iterator[str]:
    """A line for each row of the index that is no longer true: another plan, or another program.

    Args:
      names: of cases.
      quick: looks at the least of the reduced depths alone.
    """
    index = read_index()
    for name in names:
        case, entry = CASES[name], index.get(name)
        if entry is None:
            yield f"{name}: not in the index"
            continue
        plan, _ = plan_of(case)
        if plan != entry["plan"]:
            yield f"{name}: plan=fit chooses {plan!r}, the index has {entry['plan']!r}"
        for layers in case.depths[:1] if quick else case.depths:
            for call, value in lowered(case, entry["plan"], layers).items():
                if entry["programs"].get(call, {}).get(str(layers)) != value:
                    yield f"{name}: {call} at {layers} layers is another program"


def compile_case(name: str, wanted: Sequence[Program]) -> None:
    """Compiles programs of a case in this process, and writes a line for each."""
    case = CASES[name]
    slice_ = topology.parse(case.slice)
    os.environ.update(slice_.environment)  # before jax is imported
    from rlhf_jax.building.from_shapes import shaped
    from rlhf_jax.cli import compile as command
    from rlhf_jax.cli.tables import compile as table

    plan = read_index()[name]["plan"]
    devices = topology.devices(slice_)
    with command.uncached():
        for layers in dict.fromkeys(each.layers for each in wanted):
            found = shaped(config_of(case, plan), devices, layers)
            for each in wanted:
                if each.layers == layers:
                    _write(each, case, table.compiled(found, each.call, None))


def _write(program: Program, case: Case, row: Any) -> None:
    """Adds the line of a compiled program to the figures."""
    reading = row.reading
    line = {
        "slice": case.slice,
        "fingerprint": program.fingerprint,
        "case": program.case,
        "call": program.call,
        "layers": program.layers,
        "versions": {key: importlib.metadata.version(key) for key in ("jax", "libtpu")},
        "reason": row.reason,
    }
    if reading is not None:
        if reading.fingerprint != program.fingerprint:
            raise ValueError(f"{program} is {reading.fingerprint}: run with --index first")
        line |= {key: getattr(reading, key) for key in FIELDS}
        line |= {"working_bytes": reading.working_bytes, "link_bytes": reading.link_bytes}
        line |= {"seconds": round(reading.seconds)}
        line["collectives"] = [
            [each.kind, each.in_loop, each.times, each.link_bytes, each.bound]
            for each in reading.sums
        ]
    with FIGURES.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({key: line[key] for key in line if key != "collectives"}), flush=True)


def compile_missing(wanted: Sequence[Program]) -> None:
    """Compiles programs that have no figures yet, those of a case and call in a process of its own:
    libtpu reads the slice from the environment as it is loaded.
    """
    for program in wanted:
        key = CASES[program.case].slice, program.fingerprint
        if key in read_figures():
            continue
        command = [sys.executable, "-m", "experiments.bench.matrix", f"--only={program.case}"]
        command += [f"--calls={program.call}", f"--layers={program.layers}", "--here"]
        subprocess.run(command, check=True)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="cases, between commas")
    parser.add_argument("--calls", default=",".join(CALLS), help="calls, between commas")
    parser.add_argument("--layers", default="", help="depths, between commas; else all")
    parser.add_argument("--index", action="store_true", help="write the index anew; no libtpu")
    parser.add_argument("--stale", action="store_true", help="list rows of other programs")
    parser.add_argument("--here", action="store_true", help="in this process, for one slice")
    options = parser.parse_args()
    names, calls = options.only.split(","), options.calls.split(",")
    depths = [int(layers) for layers in options.layers.split(",") if layers]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"--only has {unknown[0]!r}; accepted: {', '.join(CASES)}")
    if options.index:
        index = read_index()
        for name in names:
            extra = extra_depths(index, name)
            for call in calls if depths else ():
                extra[call] = sorted({*extra.get(call, ()), *depths} - {*CASES[name].depths})
            index[name] = index_of(name, extra)
            INDEX.write_text(json.dumps(index, indent=1) + "\n")
            print(name, index[name]["plan"], flush=True)
        return
    if options.stale:
        found = list(stale(names))
        print("\n".join(found) or "every row is of the program of today")
        return
    wanted = [
        each
        for each in programs(read_index())
        if each.case in names and each.call in calls and (not depths or each.layers in depths)
    ]
    if options.here:
        (name,) = {each.case for each in wanted}
        compile_case(name, wanted)
    else:
        compile_missing(wanted)


if __name__ == "__main__":
    main()
