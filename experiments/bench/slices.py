"""Compiles updates of deep models, and the calls of rounds on slices of several hosts, by libtpu, and
keeps what the compiler says.

    python -m experiments.bench.slices                             # compiles what has no figures yet
    python -m experiments.bench.slices --only=5b --calls=generate

The figures (`results/compile_slices.jsonl`) have a line for each program: a program that has one for
its topology is not compiled again. "older" marks a line whose program is another one since. Each
topology has a process of its own, because libtpu reads it from the environment as it is loaded.
`slices_page.py` writes the page.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bench.matrix import FIELDS
from rlhf_jax.devices import topology

FIGURES = Path(__file__).parent / "results" / "compile_slices.jsonl"
INSIDE = ("generate",)
"""Calls that run inside a host. libtpu compiles no program for four chips of a larger slice, but the
same program for a slice of four."""
A_HOST = {
    "v5e:4x4": "v5e:2x2",
    "v6e:4x4": "v6e:2x2",
    "v5p:2x2x2": "v5p:2x2x1",
    "v5p:4x4x4": "v5p:2x2x1",
}
"""Slices of several hosts, and one of their hosts."""


@dataclass(frozen=True)
class Case:
    """A round on a topology.

    Attributes:
      about: the model and the round, for the page.
      topology: of `rlhf-jax compile`.
      config: as the option `--config` of a run.
      flags: further options of a run.
      layers: of the model.
      calls: those that are compiled.
    """

    about: str
    topology: str
    config: str
    flags: tuple[str, ...]
    layers: int
    calls: tuple[str, ...]

    def topology_of(self, call: str) -> str:
        """The devices that a call is compiled for: the slice, or a host of it."""
        return A_HOST.get(self.topology, self.topology) if call in INSIDE else self.topology

    @property
    def num_hosts(self) -> int:
        """Hosts of the slice."""
        of_host = topology.parse(A_HOST.get(self.topology, self.topology))
        return topology.parse(self.topology).num_devices // of_host.num_devices

    @property
    def command(self) -> str:
        """The command that compiles the case's calls at its whole depth."""
        flags = " ".join(f"'{flag}'" if " " in flag else flag for flag in self.flags)
        return (
            f"rlhf-jax compile {self.config} --topology={self.topology} "
            f"--num_layers={self.layers} {flags}"
        )


def _flags(**settings: object) -> tuple[str, ...]:
    """Options of a run; `__` stands for the dots of a key."""
    return tuple(f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items())


TLDR, GSM8K = "configs/tldr/online_dpo.py:size=410m", "configs/gsm8k/rloo.py"
UNROLLED = _flags(model__remat=True, plan="train_policy: 0-7 fsdp=8 micro_batches=8 remat")
SCANNED = (*UNROLLED, *_flags(model__scan_layers=12))
FLOAT32 = _flags(model__gradient_dtype="float32")
# A model of several hosts: every shard of rows has whole prompts, and their completions run with them
# in one pass, so that an update gathers each layer twice and not four times.
SPREAD = _flags(
    mesh__fsdp_hosts=-1,
    model__scan_layers=2,
    model__remat=True,
    model__gradient_dtype="float32",
    rlhf__share_prompts=False,
)
PARTS = "generate: 0-3 tensor=4; reference: 0-3 fsdp=4 micro_batches=4; "
MISTRAL = _flags(pretrained__policy_shape="mistral/mistral-7b-v0.3")
ONE_PART = (
    *(flag for flag in SPREAD if "gradient_dtype" not in flag),
    *MISTRAL,
    *_flags(
        rlhf__prompts_per_update=16,
        rlhf__total_prompts=16 * 1024,
        plan="generate: 0-3 tensor=4; train_policy: 0-3 fsdp=4 remat",
    ),
)
ROUND_OF_64 = (
    *SPREAD,
    *_flags(
        rlhf__prompts_per_update=64,
        rlhf__total_prompts=64 * 1024,
        plan="generate: 0-3 tensor=4; train_policy: 0-3 fsdp=4 remat",
    ),
)


def _seven_billion(where: str) -> Case:
    """A round of Mistral-7B on a topology."""
    calls = ("train_policy", "gather", "generate")
    return Case("Mistral-7B", where, GSM8K, (*ROUND_OF_64, *MISTRAL), 32, calls)


CASES = {
    "410m-2-layers": Case(
        "Pythia 410m, 2 layers, unrolled", "v5e:2x4", TLDR, UNROLLED, 2, ("train_policy",)
    ),
    "410m": Case("Pythia 410m, in a scan", "v5e:2x4", TLDR, SCANNED, 24, ("train_policy",)),
    "410m-float32": Case(
        "Pythia 410m, in a scan, float32 gradients",
        "v5e:2x4",
        TLDR,
        (*SCANNED, *FLOAT32),
        24,
        ("train_policy",),
    ),
    "410m-4-hosts": Case(
        "Pythia 410m on 4 hosts",
        "v5e:4x4",
        TLDR,
        _flags(
            model__remat=True,
            plan="train_policy: 0-3 fsdp=4 micro_batches=4 remat",
            model__scan_layers=12,
            mesh__fsdp_hosts=-1,
        ),
        24,
        ("train_policy",),
    ),
    "5b": Case(
        "Mistral-7B's layers, 22 of 32: 5.06 billion params",
        "v5e:4x4",
        GSM8K,
        (
            *SPREAD,
            *MISTRAL,
            *_flags(
                rlhf__prompts_per_update=64,
                rlhf__total_prompts=64 * 1024,
                plan=PARTS + "train_policy: 0-3 fsdp=4 micro_batches=4 remat",
            ),
        ),
        22,
        ("train_policy", "gather", "generate", "reference"),
    ),
    "5b-one-part": Case(
        "the same, a fourth of the prompts in one part, bfloat16 gradients",
        "v5e:4x4",
        GSM8K,
        ONE_PART,
        22,
        ("train_policy", "generate", "reference", "proximal"),
    ),
    "7b-v6e": _seven_billion("v6e:4x4"),
    "7b-v5p": _seven_billion("v5p:2x2x2"),
    "32b": Case(
        "Qwen2.5-32B",
        "v5p:4x4x4",
        GSM8K,
        (*ROUND_OF_64, *_flags(pretrained__policy_shape="qwen2/qwen2.5-32b")),
        64,
        ("train_policy", "gather", "generate"),
    ),
}


def read_figures() -> list[dict[str, Any]]:
    """A line for each program, in the order in which they were compiled."""
    return (
        [json.loads(line) for line in FIGURES.read_text().splitlines()] if FIGURES.exists() else []
    )


def config_of(case: Case, of_host: bool = False) -> Any:
    """The config of a case; `of_host`: of the share of a round that one host samples."""
    from rlhf_jax.cli import run

    config: Any = run.parse(["", f"--config={case.config}", *case.flags])
    if of_host:
        config.mesh.fsdp_hosts = 1
        config.rlhf.prompts_per_update //= case.num_hosts
        config.rlhf.total_prompts //= case.num_hosts
    return config


def compile_case(name: str, calls: Sequence[str]) -> None:
    """Compiles a case's programs in this process, and writes a line for each.

    Args:
      name: a key of `CASES`.
      calls: that are compiled, of those that the case has; of one topology.
    """
    case = CASES[name]
    where = case.topology_of(calls[0])
    slice_ = topology.parse(where)
    os.environ.update(slice_.environment)  # before jax is imported
    from rlhf_jax.building.from_shapes import shaped
    from rlhf_jax.cli import compile as command
    from rlhf_jax.cli.tables import compile as table
    from rlhf_jax.planner.compiled.reading import fingerprint

    devices, of_host = topology.devices_by_host(slice_), where != case.topology
    with command.uncached():
        found = shaped(config_of(case, of_host), devices, case.layers)
        for call in calls:
            with found.standing_in():
                program = fingerprint(found.program.lowered(call))
            known = {(line["topology"], line["fingerprint"]) for line in read_figures()}
            if (where, program) not in known:
                _write(name, program, table.compiled(found, call, None))


def _write(name: str, program: str, row: Any) -> None:
    """Adds the line of a compiled program to the figures."""
    line: dict[str, Any] = {
        "case": name,
        "topology": CASES[name].topology_of(row.call),
        "call": row.call,
        "layers": CASES[name].layers,
        "fingerprint": program,
        "versions": {key: importlib.metadata.version(key) for key in ("jax", "libtpu")},
        "reason": row.reason,
    }
    if row.reading is not None:
        line |= {key: getattr(row.reading, key) for key in FIELDS}
        line |= {"working_bytes": row.reading.working_bytes, "link_bytes": row.reading.link_bytes}
        line |= {"network_bytes": row.network_bytes, "cpu_seconds": round(row.cpu_seconds, 1)}
        line["collectives"] = [
            [each.kind, each.in_loop, each.times, each.link_bytes, each.bound]
            for each in row.reading.sums
        ]
    with FIGURES.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({key: line[key] for key in line if key != "collectives"}), flush=True)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", default=",".join(CASES), help="cases, between commas")
    parser.add_argument("--calls", default="", help="calls, between commas; else all")
    parser.add_argument("--here", action="store_true", help="in this process, for one case")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"--only has {unknown[0]!r}; accepted: {', '.join(CASES)}")
    calls = (
        options.calls.split(",")
        if options.calls
        else sorted({c for n in names for c in CASES[n].calls})
    )
    if options.here:
        compile_case(names[0], calls)
        return
    for name in names:
        case, of_topology = CASES[name], {}
        for call in (each for each in case.calls if each in calls):
            of_topology.setdefault(case.topology_of(call), []).append(call)
        for together in of_topology.values():
            command = [sys.executable, "-m", "experiments.bench.slices", f"--only={name}", "--here"]
            subprocess.run([*command, f"--calls={','.join(together)}"], check=True)


if __name__ == "__main__":
    main()
