"""Evaluates every saved policy of a run, and its SFT policy: `python -m experiments.evaluate
--directory=runs/quickstart`.

    python -m experiments.evaluate --directory=runs/tldr --config.evaluate.num_prompts=6447 --config.pretrained.gold=FOLDER

Fresh samples of held-out prompts; nothing of the run is changed. Any key of the run's config.json
may be given anew. Prints a table and appends the figures, with the keys given, to evaluations.jsonl
in the run's directory. What cannot be evaluated is one line and exit status 2.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ml_collections.config_flags import config_path

from rlhf_jax.cli import command, run

SHOWN = (
    "win_rate",
    "win_rate_strict",
    "win_rate_strict_greedy",
    "gold_mean",
    "reward_mean",
    "kl",
    "kl_perplexity",
    "finished",
)
FILE = "evaluations.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluates every saved policy. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("evaluate"),
        description="Evaluates a run's saved policies.",
        epilog="--config.<key>=<value> is as in the command run, over the run's config.json",
    )
    parser.add_argument(
        "--directory", type=Path, required=True, help="the run's directory, e.g. runs/quickstart"
    )
    given, overrides = parser.parse_known_args(arguments)

    def body(place: command.Place) -> None:
        place.directory = given.directory
        evaluate(given.directory, overrides)

    return command.call(
        body,
        f"the versions that were evaluated are in {FILE}; the same command evaluates all again",
    )


def evaluate(directory: Path, overrides: Sequence[str]) -> None:
    """Prints and keeps the figures of every saved policy of a run.

    Args:
      directory: of the run.
      overrides: of its config, as `--config.KEY=VALUE`.

    Raises Refusal for an override or a run that cannot be used.
    """
    from rlhf_jax import build
    from rlhf_jax.records import jsonl
    from rlhf_jax.stages import evaluate

    config = run.overridden(build.config_of(directory), overrides)
    command.use_compile_cache(config.get("compile_cache"))
    workspace, stages, _ = build.parts_for(config, "evaluate")
    changed = {key: config_path.get_value(key, config) for key, _ in run.assigned(overrides)}
    shown: list[str] = []
    for version, figures in evaluate.every_version(workspace, stages):
        if not shown:
            shown = [name for name in SHOWN if name in figures]
            print(
                "  ".join(
                    [f"{'version':>8s}", *(f"{name:>{max(8, len(name))}s}" for name in shown)]
                )
            )
        print(
            "  ".join(
                [f"{version:8d}", *(f"{figures[name]:{max(8, len(name))}.4f}" for name in shown)]
            ),
            flush=True,
        )
        jsonl.append(directory / FILE, {"version": version, "changed": changed} | figures)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
