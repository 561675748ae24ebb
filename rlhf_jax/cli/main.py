"""The console script `rlhf-jax`: names the commands, and hands its arguments on to one of them."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from rlhf_jax.cli import command

COMMANDS = {
    "run": "run an experiment, or go on with one",
    "sweep": "run a grid over a config, or the cells of a study",
    "plan": "find where each call of a round should run, and what to expect of it",
    "compile": "compile a config's calls for devices that need not be here, and read them",
    "evaluate": "evaluate every saved policy of a run",
    "export": "write a run's model as a folder that transformers loads",
    "report": "build the report of a run again",
    "generate": "sample from a version of a run's policy, beside its SFT policy",
    "compare": "compare runs on one page: figures, curves, configs, completions",
}
"""Name of a module in `rlhf_jax/cli/` -> one line about it."""
HELP = ("-h", "--help", "help")


def usage() -> str:
    """The commands, a line each."""
    lines = [f"usage: {command.SCRIPT} COMMAND [arguments]", ""]
    lines += [f"  {name:10s}{said}" for name, said in COMMANDS.items()]
    return "\n".join(
        [*lines, "", f"{command.SCRIPT} COMMAND --help says more; {command.SCRIPT} --version"]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, as a program of its own: see `command.start`.

    Returns the exit status where no command is run: 0 for help, 2 for a name that is no command.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        print(usage(), file=sys.stderr)
        return command.REFUSED
    name, *rest = given
    if name in HELP:
        print(usage())
        return 0
    if name == "--version":
        print(f"{command.SCRIPT} {importlib.metadata.version('rlhf_jax')}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        near = f"; did you mean {close[0]!r}?" if close else f"; accepted: {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}{near}", file=sys.stderr)
        return command.REFUSED
    sys.argv = [
        command.SCRIPT,
        *rest,
    ]  # what a command reads its arguments from, and names itself by
    importlib.import_module(f"rlhf_jax.cli.{name}").start()
    raise AssertionError("a command leaves by itself")


if __name__ == "__main__":
    sys.exit(main())
