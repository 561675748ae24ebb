"""A whole Online DPO round beside TRL's OnlineDPOTrainer: two samples a prompt, reference, a cheap reward on text, update.

Each side is its own process, so that its peak memory is its own, and does one round in turn. Both have a full-vocabulary law at
temperature 1, AdamW, clipping, float32; gradient checkpointing, TRL's default, is off.

    pip install -e '.[bench]' && python -m experiments.bench.online_dpo_round
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from experiments.bench import measure, rounds

SIDES = {"rlhf_jax": "experiments.bench.round_rlhf_jax", "trl": "experiments.bench.round_trl"}


class Side:
    """A side's process."""

    def __init__(self, module: str, shape_name: str):
        environment = {**os.environ, "OMP_NUM_THREADS": str(measure.NUM_THREADS), "TOKENIZERS_PARALLELISM": "false"}
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
    memory = {f"{side}_peak_megabytes": process.end() for side, process in sides.items()}
    share = round(memory["rlhf_jax_peak_megabytes"] / memory["trl_peak_megabytes"], 3)
    shape = asdict(rounds.SHAPES[name])
    return {"case": name, **shape, **measure.compared(seconds, "rlhf_jax", "trl"), **memory, "memory_share": share}


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    load = os.getloadavg()
    found = [case(name, options.repeats) for name in rounds.SHAPES if options.only in name]
    measure.report("online_dpo_round", found, load, options.output)


if __name__ == "__main__":
    main()
