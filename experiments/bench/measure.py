"""Shared parts of the benchmarks: sides run in turn in one process, the shapes they are run at, and
the one JSON line.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NUM_THREADS = 2
TRL_ON_CPU: dict[str, Any] = {
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Options of TRL's trainers in every benchmark: float32 on CPU, and nothing written."""
PACKAGES = (
    "rlhf_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
)


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every run of every side, the sides in turn (A B A B ...), so that what else the
    machine does meets all alike.

    A side must have finished its work when it returns. The first `warm_up` runs of each are not
    kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compared(seconds: Mapping[str, list[float]], ours: str, peer: str) -> dict[str, Any]:
    """Minima in seconds, and how many times faster than the peer we are by them (more than 1: we
    are faster).
    """
    least = {f"{name}_seconds": round(min(values), 5) for name, values in seconds.items()}
    middle = {
        f"{name}_median_seconds": round(sorted(values)[len(values) // 2], 5)
        for name, values in seconds.items()
    }
    return {**least, **middle, "times_faster": round(min(seconds[peer]) / min(seconds[ours]), 3)}


def peak_resident_megabytes() -> float:
    """Peak resident memory of this process's program, MB of 10^6 bytes.

    From /proc where there is one: `ru_maxrss` of a started process begins at its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 1e6


def versions() -> dict[str, str]:
    """Versions of the packages that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    arguments = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--repeats", type=int, default=7, help="runs of each side that are kept")
    arguments.add_argument("--quick", action="store_true", help="fewer rows for the larger model")
    arguments.add_argument("--only", default="", help="only the cases whose name contains this")
    arguments.add_argument("--output", type=Path, help="also write the JSON line to this file")
    return arguments


def report(
    name: str,
    cases: list[dict[str, Any]],
    began_load: tuple[float, float, float],
    output: Path | None,
) -> None:
    """Prints the benchmark's one JSON line; `began_load` is the load average when it began."""
    line = {
        "benchmark": name,
        "command": " ".join(["python", "-m", f"experiments.bench.{name}", *sys.argv[1:]]),
        "cases": cases,
        "threads": NUM_THREADS,
        "load_average": {"began": began_load, "ended": os.getloadavg()},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": versions(),
    }
    text = json.dumps(line)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0].split(":")[1].strip() if names else platform.processor()
