"""Whole runs in the smallest sizes, and what is compared of two of them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs import quickstart
from experiments.bench.kill import untimed
from rlhf_jax import build

SIZES = {
    "model.width": 16,
    "model.ffn_width": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "lengths.max_completion_tokens": 8,
    "sft.num_updates": 4,
    "sft.rows_per_update": 8,
    "sft.checkpoint_every": 2,
    "comparisons.num_train": 32,
    "comparisons.num_heldout": 16,
    "comparisons.prompts_per_batch": 16,
    "reward_model.num_updates": 4,
    "reward_model.pairs_per_update": 4,
    "reward_model.checkpoint_every": 2,
    "reward_model.standardize_prompts": 16,
    "rlhf.total_prompts": 32,
    "rlhf.prompts_per_update": 4,
    "rlhf.samples_per_prompt": 2,
    "rlhf.lag": 2,
    "rlhf.loop": "synchronous",
    "rlhf.evaluate_every": 4,
    "rlhf.checkpoint_every": 1,
    "rlhf.keep_checkpoints": 20,
    "rlhf.log_samples": 1,
    "rlhf.gradient_cosine": True,  # what it keeps is part of a state
    "evaluate.num_prompts": 8,
    "evaluate.num_prompts_between": 8,
    "evaluate.prompts_per_batch": 8,
    "evaluate.samples_per_prompt": 2,
    "best_of_n": (1,),
    "best_of_n_prompts": 8,
    "reward": "gold",
}


def config(directory: Path, algorithm: str = "online_dpo", **changed: Any) -> Any:
    """A pipeline of 8 rounds at lag 2; keys are flattened, with `__` for dots."""
    found = quickstart.get_config(f"algorithm={algorithm}")
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    found.update_from_flattened_dict(SIZES | dotted | {"directory": str(directory)})
    return found


def run(directory: Path, **changed: Any) -> None:
    """Runs the pipeline to its end, or goes on with it."""
    build.run(config(directory, **changed))


def steps(directory: Path, stage: str = "rlhf") -> list[int]:
    """Versions of a stage's checkpoints."""
    return sorted(
        int(path.name)
        for path in (directory / "checkpoints" / stage).iterdir()
        if path.name.isdecimal()
    )


def state(directory: Path, stage: str = "rlhf", step: int | None = None) -> list[np.ndarray]:
    """Every array of a stage's newest checkpoint, or of one version."""
    with ocp.CheckpointManager((directory / "checkpoints" / stage).absolute()) as manager:
        found = manager.latest_step() if step is None else step
        assert found is not None
        restored: Any = manager.restore(found, args=ocp.args.StandardRestore())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored)]


def policy(directory: Path, stage: str = "rlhf", step: int | None = None) -> list[np.ndarray]:
    """The policy's params of a checkpoint."""
    with ocp.CheckpointManager((directory / "checkpoints" / stage).absolute()) as manager:
        found = manager.latest_step() if step is None else step
        assert found is not None
        restored: Any = manager.restore(found, args=ocp.args.StandardRestore())
    tree = restored["policy"] if stage == "rlhf" else restored
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree["params"])]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Bitwise."""
    return [x.tobytes() for x in one] == [x.tobytes() for x in other]


def lines(directory: Path, name: str, stage: str = "rlhf") -> list[dict[str, Any]]:
    """The lines of a file that are of a stage or of its evaluations, without times."""
    found = untimed(directory / name)
    return [line for line in found if stage in (line["stage"], line.get("of"))]


FILES = ("metrics.jsonl", "ledger.jsonl", "samples.jsonl")


def differences(one: Path, other: Path, files: tuple[str, ...] = FILES) -> list[str]:
    """What is not bitwise equal at the end of two runs of RLHF."""
    found = [] if same(state(one), state(other)) else ["checkpoint"]
    return found + [name for name in files if lines(one, name) != lines(other, name)]


def tree(directory: Path) -> dict[str, bytes]:
    """Every file of a run but those that a start is told in, and the config, which has the
    directory's name.
    """
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.name not in (".lock", "starts.jsonl", "config.json")
        and "tensorboard" not in path.parts
    }


def last_start(directory: Path) -> dict[str, Any]:
    """The last line of starts.jsonl."""
    return json.loads((directory / "starts.jsonl").read_text().splitlines()[-1])
