"""Seconds from starting a process to its first RLHF update, with no compile cache and the earlier
stages done before.

A first run makes a small SFT policy and reward model; its RLHF stage is then removed and the same
command started again. The time ends when `metrics.jsonl` has the first update's line (it is
written one update late). The programs that JAX compiled are printed too.

    python -m experiments.bench.start
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench import measure

SMALL = (
    "sft.num_updates=2",
    "comparisons.num_train=256",
    "comparisons.num_heldout=256",
    "reward_model.num_updates=2",
    "rlhf.total_prompts=64",
    "best_of_n=()",
)
COMPILED = re.compile(
    r"Finished (tracing \+ transforming|jaxpr to MLIR module conversion|XLA compilation of) (.*?) "
    r".*?in ([\d.e-]+) sec"
)


def command(directory: Path, overrides: list[str]) -> list[str]:
    """The quickstart with small earlier stages; they do not change what the RLHF stage compiles."""
    keys = [f"--config.{override}" for override in (f"directory={directory}", *SMALL, *overrides)]
    return [sys.executable, "-m", "experiments.run", "--config=configs/quickstart.py", *keys]


def environment(log_compiles: bool) -> dict[str, str]:
    """This process's environment without any compile cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_COMPILATION_CACHE")
    }
    return {
        **kept,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **({"JAX_LOG_COMPILES": "1"} if log_compiles else {}),
    }


def forget_rlhf(directory: Path) -> None:
    """Removes the RLHF stage's artefacts and lines, so that the same command runs that stage again."""
    for artefact in (directory / "checkpoints" / "rlhf", directory / "rounds"):
        shutil.rmtree(artefact, ignore_errors=True)
    metrics = directory / "metrics.jsonl"
    lines = [
        line
        for line in metrics.read_text().splitlines()
        if "rlhf" not in (json.loads(line)["stage"], json.loads(line).get("of"))
    ]
    metrics.write_text("".join(f"{line}\n" for line in lines))


def reached(directory: Path, stage: str) -> bool:
    """True where the metrics have a first whole line of a stage ("evaluate": of the RLHF stage)."""
    whole = (directory / "metrics.jsonl").read_text().rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines() if line]
    return any(line["stage"] == stage and line.get("of") in (None, "rlhf") for line in lines)


def timed(
    directory: Path, overrides: list[str], log_compiles: bool
) -> tuple[dict[str, float], str]:
    """Seconds until the first evaluation and the first update of the RLHF stage, and the process's
    log.
    """
    forget_rlhf(directory)
    log = directory.parent / "log"
    found: dict[str, float] = {}
    with log.open("w") as stream:
        began = time.perf_counter()
        process = subprocess.Popen(
            command(directory, overrides),
            env=environment(log_compiles),
            stdout=stream,
            stderr=stream,
        )
        while "first_update_seconds" not in found:
            for stage, name in (
                ("evaluate", "first_evaluation_seconds"),
                ("rlhf", "first_update_seconds"),
            ):
                if name not in found and reached(directory, stage):
                    found[name] = round(time.perf_counter() - began, 2)
            if (
                process.poll() is not None
                and "first_update_seconds" not in found
                and not reached(directory, "rlhf")
            ):
                raise RuntimeError(
                    f"the run ended with {process.returncode} before its first "
                    f"update:\n{log.read_text()[-3000:]}"
                )
            time.sleep(0.02)
    process.wait()
    return found, log.read_text()


def compile_parts(log: str) -> dict[str, float]:
    """Seconds of tracing, lowering and compiling by function, the largest first; from the log of
    JAX_LOG_COMPILES.
    """
    parts: dict[str, float] = {}
    for kind, function, seconds in COMPILED.findall(log):
        name = f"{'compile' if 'XLA' in kind else 'trace and lower'} {function}"
        parts[name] = parts.get(name, 0.0) + float(seconds)
    return {
        name: round(seconds, 3)
        for name, seconds in sorted(parts.items(), key=lambda item: -item[1])[:16]
    }


def import_seconds() -> float:
    """Seconds of a process that only imports what a run imports."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import experiments.run, rlhf_jax.build"], check=True)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    options, overrides = measure.parser(__doc__).parse_known_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        subprocess.run(
            command(directory, overrides),
            env=environment(False),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        runs = [timed(directory, overrides, log_compiles=False)[0] for _ in range(options.repeats)]
        parts = compile_parts(timed(directory, overrides, log_compiles=True)[1])
    least: dict[str, Any] = {name: min(run[name] for run in runs) for name in runs[0]}
    case = {
        "case": "quickstart",
        **least,
        "import_seconds": import_seconds(),
        "parts_seconds": parts,
        "overrides": overrides,
    }
    measure.report("start", [case], load, options.output)


if __name__ == "__main__":
    main()
