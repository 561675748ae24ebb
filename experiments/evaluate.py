"""Evaluates every saved policy of a run, and its SFT policy: `python -m experiments.evaluate --directory=runs/quickstart`.

    python -m experiments.evaluate --directory=runs/tldr --config.evaluate.num_prompts=6447 --config.hub.gold=FOLDER

Fresh samples of held-out prompts; nothing of the run is changed. Any key of the run's config.json may be given anew. Prints a
table and appends the figures, with the keys given, to evaluations.jsonl in the run's directory. What cannot be evaluated is one
line and exit status 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.refusal import Refusal

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
PREFIX = "--config."


def changes(unknown: Sequence[str]) -> dict[str, str]:
    """{key: value} of `--config.<key>=<value>`. Raises Refusal for anything else."""
    found = {}
    for argument in unknown:
        key, equals, value = argument.removeprefix(PREFIX).partition("=")
        if not argument.startswith(PREFIX) or not equals:
            raise Refusal(f"{argument!r} is not understood; accepted: --directory=RUN and {PREFIX}<key>=<value>")
        found[key] = value
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate", description="Evaluates a run's saved policies."
    )
    parser.add_argument("--directory", type=Path, required=True, help="the run's directory, e.g. runs/quickstart")
    given, unknown = parser.parse_known_args(arguments)
    from rlhf_jax import build
    from rlhf_jax.jobs import evaluate
    from rlhf_jax.observe import lines

    try:
        changed = changes(unknown)
        workspace, stages, _ = build.of_directory(given.directory, **changed)
        shown: list[str] = []
        for version, figures in evaluate.every_version(workspace, stages):
            if not shown:
                shown = [name for name in SHOWN if name in figures]
                print("  ".join([f"{'version':>8s}", *(f"{name:>{max(8, len(name))}s}" for name in shown)]))
            print(
                "  ".join([f"{version:8d}", *(f"{figures[name]:{max(8, len(name))}.4f}" for name in shown)]), flush=True
            )
            lines.append(given.directory / FILE, {"version": version, "changed": changed} | figures)
    except (OSError, Refusal) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
