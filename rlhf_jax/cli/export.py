"""Exports a run's model: `python -m experiments.export --directory=runs/quickstart --stage=rlhf
--to=my_policy`.

Writes a folder that `transformers` loads: config.json, model.safetensors, the tokenizer's files
where it has some, the other files of the folder that the run began with, but for weights, and a
model card, README.md.
Of a run with adapters the folder is the merged model, or with --adapter a folder of PEFT.
Stages: sft, rlhf and dpo (policies), reward_model (a sequence classifier of one label, in its raw unit).
What cannot be exported is one line and exit status 2.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.cli import command

STAGES = ("sft", "reward_model", "rlhf", "dpo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports the params of a stage. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("export"), description="Exports a run's model."
    )
    parser.add_argument(
        "--directory", type=Path, required=True, help="the run's directory, e.g. runs/quickstart"
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="the folder to write, which must not be there"
    )
    parser.add_argument(
        "--stage", choices=STAGES, default="", help="whose params (the policy's: rlhf or dpo)"
    )
    parser.add_argument(
        "--version", type=int, help="of a saved policy of the stage rlhf or dpo (the newest)"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="write the adapter alone, as a folder of PEFT"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    given = parser.parse_args(arguments)

    def body(place: command.Place) -> None:
        from rlhf_jax import build
        from rlhf_jax.stages import export

        place.directory = given.to
        command.use_compile_cache_of(given.directory)
        workspace, _, _ = build.of_directory(given.directory)
        export.write(workspace, given.stage, given.to, given.version, given.dtype, given.adapter)
        print(given.to)

    return command.call(body)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
