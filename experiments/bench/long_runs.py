"""Measures what a long run's files cost: opening and resuming with a ledger, metrics and samples of
many rows, reading a schedule to be replayed, and the report of many rounds.

    python -m experiments.bench.long_runs --rows=5000000 --rounds=100000

Each case runs in a process of its own, on files that were just written: CPU seconds, seconds on the
wall, and the peak resident memory above that of the imports. `--only=resume` runs the cases whose
names contain it. `--rounds=0` and `--rows=0` leave cases out. `--memory_gb` limits the memory of a
case; one that needs more, or longer than `--limit` seconds, is reported as not done.
"""

import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.bench import measure
from rlhf_jax.clock import Clock
from rlhf_jax.records import jsonl, ledger, metrics, samples, timeline
from rlhf_jax.records.ledger import STAGE, Ledger
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.records.samples import SamplesWriter
from rlhf_jax.report import html

ROWS_PER_ROUND = 512
LAST_ROUNDS = 20
"""Rounds after the checkpoint that a run is resumed from."""
FIGURES = (
    "loss", "grad_norm", "reward_raw", "reward_standardized", "score", "kl", "entropy", "sampled_length",
    "finished", "advantage_mean", "advantage_std", "ratio_mean", "ratio_max", "clipped", "margin",
    "accuracy", "age", "learning_rate",
)  # fmt: skip
SPANS = (
    ("sampler", "wait", 0.0, 0.05), ("sampler", "generate", 0.05, 0.9), ("trainer", "wait", 0.0, 0.3),
    ("trainer", "train", 0.3, 0.8), ("trainer", "publish", 0.8, 0.85), ("trainer", "host", 0.85, 0.87),
    ("trainer", "host", 0.87, 0.88), ("trainer", "host", 0.88, 0.9),
)  # fmt: skip
Lines = Iterator[dict[str, Any]]


def written(path: Path, lines: Lines) -> None:
    """Appends lines, a few thousand at a time."""
    with path.open("a") as file:
        for line in lines:
            file.write(jsonl.ENCODE(line) + "\n")


def ledger_rows(rounds: int) -> Lines:
    """Rows as a run at lag 1 writes them, 570 bytes each."""
    text = "the staff was kind and the rooms were clean . " * 5
    for index in range(rounds):
        for row in range(ROWS_PER_ROUND):
            yield {
                "stage": STAGE, "update": index, "round": index, "ordinal": index * 64 + row // 8,
                "prompt_hash": 2754817261, "sample": row % 8, "version": max(0, index - 1),
                "ages": [min(1, index)], "length": 48, "finished": True, "raw": 1.234567,
                "standardized": 0.7654321, "score": 0.7654321, "behavior_logprob": -47.12345,
                "proximal_logprob": None, "reference_logprob": -48.12345, "advantage": 0.1234567,
                "place": None, "gold": None, "text": text,
            }  # fmt: skip


def metrics_lines(rounds: int) -> Lines:
    """A line for each update, and a thousand evaluations."""
    every = max(1, rounds // 1000)
    for index in range(rounds):
        figures = dict.fromkeys(FIGURES, 0.1234567 + 0.001 * (index % 97))
        yield {"stage": STAGE, "update": index, "seconds": float(index), **figures}
        if index % every == 0:
            line = {"stage": "evaluate", "of": STAGE, "update": index + 1, "seconds": float(index)}
            kl = 20 * index / rounds
            yield line | {"gold_mean": kl**0.5, "gold_mean_stderr": 0.01, "kl": kl, "win_rate": 0.6}


def samples_lines(rounds: int) -> Lines:
    """Four completions of each round."""
    for index in range(rounds):
        for ordinal in range(4):
            yield {
                "stage": STAGE, "update": index, "kind": "during", "ordinal": ordinal,
                "prompt": "review of the old inn . the staff was", "completion": "kind . " * 10,
                "finished": True, "gold": 1.25, "reward": 0.5,
            }  # fmt: skip


def timeline_lines(rounds: int) -> Lines:
    """The spans of each round, of one process."""
    for index in range(rounds):
        for side, what, begin, end in SPANS:
            yield {
                "stage": STAGE, "began": 1700000000.5, "side": side, "what": what,
                "round_index": index, "begin": index + begin, "end": index + end,
            }  # fmt: skip


def measured(body: Callable[[], object], limit: float, memory_gb: float) -> dict[str, Any]:
    """Seconds and memory of a call in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child() -> None:
        if memory_gb:
            limit_bytes = int(memory_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of this process begins here
        before, began = measure.peak_resident_megabytes(), time.perf_counter()
        cpu = time.process_time()
        try:
            body()
        except MemoryError:
            sending.send({"not_done": f"more than {memory_gb:g} GB"})
            return
        except Exception as error:
            sending.send({"not_done": repr(error)})
            return
        sending.send(
            {
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "seconds": round(time.perf_counter() - began, 3),
                "peak_megabytes": round(measure.peak_resident_megabytes() - before, 1),
            }
        )

    process = context.Process(target=child)
    process.start()
    found: dict[str, Any] = {"not_done": f"more than {limit:g} s"}
    if receiving.poll(limit):
        found = receiving.recv()
    process.kill()
    process.join()
    return found


def resume(directory: Path, rounds: int) -> None:
    """Opens and cuts back every file, as a start from a checkpoint does."""
    version = rounds - LAST_ROUNDS
    kept_samples, kept_ledger = SamplesWriter(directory), Ledger(directory)
    with MetricsWriter(directory) as writer:
        writer.resume(STAGE, version, version + 1)
    kept_samples.resume(STAGE, version)
    kept_ledger.resume(version)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="of the ledger")
    parser.add_argument("--rounds", type=int, default=100_000, help="of the report")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a case")
    parser.add_argument("--memory_gb", type=float, default=0.0, help="of a case; 0: no limit")
    parser.add_argument("--folder", type=Path, help="that files are written to (a temporary one)")
    options = parser.parse_args()
    load, cases = os.getloadavg(), []

    def case(name: str, body: Callable[[], object], **facts: Any) -> None:
        if options.only in name:
            found = measured(body, options.limit, options.memory_gb)
            cases.append({"case": name, **facts, **found})

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        directory = Path(folder)
        rounds = options.rows // ROWS_PER_ROUND
        if rounds:
            for name, lines in (
                (ledger.FILE, ledger_rows), (metrics.FILE, metrics_lines), (samples.FILE, samples_lines)
            ):  # fmt: skip
                written(directory / name, lines(rounds))
            facts = {
                "rows": rounds * ROWS_PER_ROUND,
                "ledger_gigabytes": round((directory / ledger.FILE).stat().st_size / 1e9, 3),
            }
            clock = Clock(rounds)
            path = directory / ledger.FILE
            case("replay", lambda: ledger.version_schedule(path, clock), **facts)
            case("resume", lambda: resume(directory, rounds), **facts)
            for path in directory.iterdir():
                path.unlink()
        for rounds in (options.rounds // 4, options.rounds):
            if rounds and options.only in "report":
                for path in directory.glob("*.jsonl"):
                    path.unlink()
                written(directory / metrics.FILE, metrics_lines(rounds))
                written(directory / samples.FILE, samples_lines(rounds))
                written(directory / timeline.FILE, timeline_lines(rounds))
                config = {"rlhf": {"loop": "asynchronous"}, "algorithm": {"name": "rloo"}}
                (directory / "config.json").write_text(json.dumps(config))
                page = directory / html.FILE
                case("report", lambda: html.write_report(directory), rounds=rounds)
                if page.exists():
                    cases[-1]["page_megabytes"] = round(page.stat().st_size / 1e6, 2)
    measure.report("long_runs", cases, load, options.output)


if __name__ == "__main__":
    main()
