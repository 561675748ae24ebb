"""Samples from a saved version of a run's policy, beside its SFT policy.

    rlhf-jax generate runs/quickstart --prompt "review of the old inn . the staff was"
    python -m experiments.generate runs/tldr@48 --prompt TEXT --prompt TEXT --temperature=0

Prints a table with a row for each prompt. Both policies draw with the same random numbers. What
cannot be sampled is one line and exit status 2.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.cli import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints completions. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("generate"),
        description="Samples from a saved version of a run's policy, beside its SFT policy.",
    )
    parser.add_argument(
        "run", metavar="RUN[@version]", help="the run's directory; without a version the newest"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="may be given several times",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="put each prompt into the chat template of the task or the tokenizer",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (1.0)")
    parser.add_argument(
        "--max_tokens",
        "--max-tokens",
        type=int,
        help="of a completion, its EOS included (as the run's config has it)",
    )
    parser.add_argument("--seed", type=int, help="of the random numbers (the run's)")
    given = parser.parse_args(arguments)

    def body(place: command.Place) -> None:
        del place  # nothing is written
        from rlhf_jax import build  # after the arguments: jax takes seconds to import
        from rlhf_jax.stages.common import beginning, generate

        request = generate.Request(
            tuple(given.prompt), given.chat, given.temperature, given.max_tokens, given.seed
        )
        request.check()
        directory, version = beginning.parse(given.run)
        command.use_compile_cache_of(directory)
        workspace, _, _ = build.of_directory(directory)
        show(request.prompts, generate.side_by_side(workspace, version, request))

    return command.call(body)


def show(prompts: Sequence[str], completions: Mapping[str, Sequence[Any]]) -> None:
    """Prints a table: a row for each prompt, and a column for each policy's completions."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rlhf_jax.records.samples import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in ("prompt", *completions):
        table.add_column(name, ratio=1, overflow="fold")
    for row, prompt in enumerate(prompts):
        answers = [texts[row] for texts in completions.values()]
        cells = [answer.text + ("" if answer.finished else " … (cut)") for answer in answers]
        table.add_row(*(Text(printable(text)) for text in (prompt, *cells)))
    Console(file=sys.stdout, highlight=False).print(table)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
