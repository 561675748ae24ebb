"""Invented runs of two groups and two seeds each, as a comparison reads them."""

import json
from pathlib import Path
from typing import Any

from rlhf_jax.config import flatten, with_leaves
from tests.report.conftest import make_run

WORSE = 0.6


def vary(directory: Path, seed: int, gain: float = 1.0, **changed: Any) -> Path:
    """A run whose gold score rises by `gain` times as much; keys are flattened, `__` for dots."""
    make_run(directory)
    path = directory / "config.json"
    config = flatten(json.loads(path.read_text())) | {"seed": seed}
    config |= {"directory": str(directory), "rlhf.lag": 1}
    config |= {key.replace("__", "."): value for key, value in changed.items()}
    path.write_text(json.dumps(with_leaves({}, config)))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("of") == "rlhf":
            line["gold_mean"] = 0.4 + gain * (line["gold_mean"] - 0.4) + 0.01 * seed
            line["win_rate"] = 0.5 + gain * (line["win_rate"] - 0.5)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def two_groups(root: Path) -> list[Path]:
    """Two seeds of beta 0.1, and two of beta 0.5, which are worse; the last one's words differ."""
    runs = [vary(root / f"beta_0.1_{seed}", seed) for seed in (0, 1)]
    runs += [vary(root / f"beta_0.5_{seed}", seed, WORSE, algorithm__beta=0.5) for seed in (0, 1)]
    for path in runs[2:]:
        samples = path / "samples.jsonl"
        samples.write_text(samples.read_text().replace("a quiet, moving joy", "a loud bore"))
    return runs
