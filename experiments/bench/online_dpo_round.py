"""A whole Online DPO round beside TRL's OnlineDPOTrainer: two samples a prompt, reference, a cheap
reward on text, update.

Each side is its own process, so that its peak memory is its own, and does one round in turn. Both
have a full-vocabulary law at temperature 1, AdamW, clipping, float32; gradient checkpointing, TRL's
default, is off. Compiling takes memory that a started run keeps, so our peak is given for a first
start, and for a second one that reads its programs from JAX's compile cache.

    pip install -e '.[bench]' && python -m experiments.bench.online_dpo_round
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from experiments.bench import measure, rounds

SIDES = {"rlhf_jax": "experiments.bench.round_rlhf_jax", "trl": "experiments.bench.round_trl"}


class Side:
    """A side's process."""

    def __init__(self, module: str, shape_name: str, **settings: str):
        environment = {
            **os.environ,
            **settings,
            "OMP_NUM_THREADS": str(measure.NUM_THREADS),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", module, shape_name]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.hear()

    def hear(self) -> dict[str, Any]:
        """The side's next message. Raises RuntimeError where it ended without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"to": "benchmark"'):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")

    def round(self) -> float:
        """Seconds of one round, as the side measured them."""
        assert self.process.stdin is not None
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        return self.hear()["seconds"]

    def end(self) -> float:
        """The side's peak resident memory, MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        megabytes = self.hear()["peak_megabytes"]
        self.process.wait()
        return round(megabytes, 1)


def case(name: str, repeats: int) -> dict[str, Any]:
    """Both sides in turn at one shape."""
    sides = {side: Side(module, name) for side, module in SIDES.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    warm_up = 3
    for repeat in range(warm_up + repeats):
        for side, process in sides.items():
            took = process.round()
            if repeat >= warm_up:
                seconds[side].append(took)
    memory: dict[str, float] = {
        f"{side}_peak_megabytes": process.end() for side, process in sides.items()
    }
    memory["rlhf_jax_cached_peak_megabytes"] = cached_peak_megabytes(name)
    for which in ("", "cached_"):
        share = memory[f"rlhf_jax_{which}peak_megabytes"] / memory["trl_peak_megabytes"]
        memory[f"{which}memory_share"] = round(share, 3)
    return {
        "case": name,
        **asdict(rounds.SHAPES[name]),
        **measure.compared(seconds, "rlhf_jax", "trl"),
        **memory,
    }


def cached_peak_megabytes(name: str) -> float:
    """Our peak in a process that finds all of its programs in the compile cache."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for _ in range(2):
            side = Side(SIDES["rlhf_jax"], name, **cache)
            for _ in range(3):
                side.round()
            megabytes = side.end()
    return megabytes


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    found = [case(name, options.repeats) for name in rounds.SHAPES if options.only in name]
    measure.report("online_dpo_round", found, load, options.output)


if __name__ == "__main__":
    main()
