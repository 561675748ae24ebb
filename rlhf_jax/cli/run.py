"""Runs an experiment: `python -m experiments.run --config=configs/quickstart.py
[--config.<key>=<value> ...]`.

`rlhf-jax run quickstart` is the same command on a config that comes with the code, by its short
name. `--config.algorithm.name=rloo` and `--config.task.name=addition` take another component with
its own defaults, whose keys the arguments may then set. Exit statuses: see `command.py`. After
status 1 and 130 the same command goes on.
"""

import argparse
import contextlib
import ctypes
import difflib
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from rlhf_jax import config_modules
from rlhf_jax.cli import command, config_files
from rlhf_jax.config import flatten
from rlhf_jax.refusal import Refusal
from rlhf_jax.run_directory import history

HELP = {"-h", "-help", "--help"}
ACCEPTED = "accepted: --config=FILE and --config.<key>=<value>"
USAGE = """\
usage: {program} NAME[:argument] [--config.<key>=<value> ...]
       {program} --config=FILE[:argument] [--config.<key>=<value> ...]

Runs an experiment. The same command goes on with one that was interrupted.

  NAME             a config that comes with the code (they are listed below)
  FILE             a config file, such as configs/quickstart.py in a clone, or your own
  :argument        what the file's get_config takes, such as :algorithm=rloo
  --config.<key>   a value of the config; --help beside a config lists its keys with the values that they have

Configs that come with the code, in {folder}:

{names}
"""
AGAIN = "the same command goes on from the last checkpoint"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that the arguments name, with its overrides.

    Raises Refusal that says what is wrong with them.
    """
    named, overrides = split(argv)
    if asked := [argument for argument in overrides if argument in HELP]:
        overrides.remove(asked[0])
        keys = keys_of(overridden(config_files.load(named), overrides))
        print(f"{usage()}\nkeys of {named}:\n\n{keys}")
        raise SystemExit
    return overridden(config_files.load(named), overrides)


def usage() -> str:
    """The usage of the command, and the configs that come with the code."""
    names = textwrap.fill(
        ", ".join(config_modules.shipped()), initial_indent="  ", subsequent_indent="  "
    )
    return USAGE.format(program=command.program("run"), folder=config_modules.folder(), names=names)


def keys_of(config: ConfigDict) -> str:
    """The keys of a config as arguments, with the values that they have."""
    return "\n".join(
        f"--config.{key}={value!r}" for key, value in flatten(config.to_dict()).items()
    )


def options_beside(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a config and options of its own.

    Args:
      name: of the command.
      description: what it does.
    """
    parser = argparse.ArgumentParser(
        prog=command.program(name),
        usage="%(prog)s (NAME | --config=FILE) [--config.<key>=<value> ...] [options]",
        description=description,
        epilog="NAME, --config=FILE and --config.<key>=<value> are as in the command run; with "
        "--help beside a config its keys are listed, with the values that they have",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    return parser


def print_help(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Prints the options of such a command, and the keys of its config where one is named.

    Args:
      parser: from `options_beside`.
      rest: the arguments that are not the parser's.
    """
    parser.print_help()
    if rest:
        print(f"\n{keys_of(parse([parser.prog, *rest]))}")


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The config that the arguments name, its `:argument` included, and the other arguments.

    It is the value of `--config`, or an argument of its own that is no flag and cannot be the value
    of the flag before it. Raises Refusal where none is named, or two in different ways.
    """
    named, alone, overrides = [], [], []
    rest, before = iter(argv[1:]), ""
    for argument in rest:
        flag, equals, value = argument.partition("=")
        is_value = before.startswith("-") and "=" not in before and before not in HELP
        if flag.lstrip("-") == "config" and flag.startswith("-"):
            named.append(value if equals else next(rest, ""))
            argument = "--config="
        elif not argument.startswith("-") and not is_value and not alone:
            alone.append(argument)
        else:
            overrides.append(argument)
        before = argument
    if named and alone:
        raise Refusal(f"unknown argument {alone[0]!r} beside --config={named[-1]}; {ACCEPTED}")
    named += alone
    if not named and HELP & set(overrides):
        print(usage(), end="")
        raise SystemExit
    if not named:
        raise Refusal(
            f"no config is given; pass --config=FILE, a file of configs/ ({config_files.listed()}) "
            "or your own"
        )
    return named[-1], overrides


def overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A config with `--config.<key>=<value>` arguments, or `--config.<key> <value>`, as
    ml_collections reads them.

    The type of a key is that of its value in the config. Raises Refusal for a key that the config
    lacks, a value of another type, and any other argument.
    """
    from rlhf_jax.building.exchange import exchanged

    config = exchanged(config, dict(assigned(overrides)))
    check_keys(config, overrides)
    values = (
        flags.FlagValues()
    )  # of this call alone, so that a process may read as many configs as it likes
    argv = ["", *overrides]
    found = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise Refusal(
            f"unknown argument '--{error.flagname}'{_as_key(error.flagname, config)}; {ACCEPTED}"
        ) from error
    except (flags.Error, ValueError, TypeError) as error:
        raise Refusal(_unread(error, config, overrides)) from error
    if len(rest) > 1:
        raise Refusal(f"unknown argument {rest[1]!r}; {ACCEPTED}")
    return found.value


def assigned(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Keys that arguments override, and their values' texts; "" for a flag without any."""
    found = []
    for argument, following in pairwise([*overrides, ""]):
        flag, equals, value = argument.partition("=")
        key = flag.lstrip("-")
        if flag.startswith("-") and key.startswith("config."):
            found.append(
                (
                    key.removeprefix("config."),
                    value if equals or following.startswith("-") else following,
                )
            )
    return found


def check_keys(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Raises Refusal for an override of a key that the config lacks, with the nearest one or all of
    its neighbours.
    """
    for path, text in assigned(overrides):
        keys, node = path.split("."), config
        for depth, key in enumerate(keys):
            if not isinstance(node, ConfigDict) or key not in node:
                if renamed := history.new_name(path):
                    raise Refusal(f"config has no key {path!r}; {renamed}")
                raise Refusal(
                    f"{'.'.join(['config', *keys[:depth]])} has no key "
                    f"{key!r}{_neighbours(key, node)}"
                )
            node = node[key]
        if isinstance(node, ConfigDict):
            hint = (
                f"; --config.{path}.name={text} takes another one"
                if "name" in node and text
                else ""
            )
            raise Refusal(
                f"config.{path} has keys below it; accepted: --config.{path}.<key>=<value> with "
                f"{', '.join(node)}{hint}"
            )


def _unread(error: Exception, config: ConfigDict, overrides: Sequence[str]) -> str:
    """Names the override whose text is no value of its key's type; else what the parser said."""
    values = config.to_dict()
    for path, text in assigned(overrides):
        kind = type(flatten(values)[path])
        if f"config.{path}={text}" in str(error):
            return f"{path} is {text!r}; accepted: {kind.__name__}"
    return command.one_line(str(error))


def _neighbours(key: str, node: object) -> str:
    names = list(node) if isinstance(node, ConfigDict) else []
    close = difflib.get_close_matches(key, names, 1)
    return (
        f"; did you mean {close[0]!r}?"
        if close
        else f"; accepted: {', '.join(names) or 'no keys below it'}"
    )


def _as_key(flag: str, config: ConfigDict) -> str:
    """Names keys of the config that end in an argument's name."""
    keys = [key for key in flatten(config.to_dict()) if key.rpartition(".")[2] == flag]
    return f"; did you mean {' or '.join(f'--config.{key}' for key in keys)}?" if keys else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a config's job. Raises SystemExit with a status where it does not end well: see
    `command.py`.

    Several processes: see `devices/distributed.py`.
    """

    def body(place: command.Place) -> None:
        arguments = sys.argv if argv is None else argv
        if command.is_started() and sys.stdout.isatty() and not HELP & set(arguments):
            # JAX is imported by what follows. In a log a refusal stays the only line.
            print(f"reading {split(arguments)[0]}", flush=True)
        config = parse(arguments)
        from rlhf_jax import build
        from rlhf_jax.cli import pulse
        from rlhf_jax.devices import distributed
        from rlhf_jax.runtime import stopping

        if command.is_started():
            stopping.allow_exit()

        place.directory = Path(str(config.get("directory", "")) or ".")
        command.use_compile_cache(config.get("compile_cache"))
        several = distributed.initialize()
        if command.is_started():
            pulse.start()  # which asks for the number of this process
        if several:
            run_with_others(config, place)
        else:
            build.run(config)

    if status := command.call(body, AGAIN):
        raise SystemExit(status)


def run_with_others(config: ConfigDict, place: command.Place) -> None:
    """Runs a job as one of several processes: a failure in one ends it at once, and the others hear
    of it.
    """
    from rlhf_jax import build
    from rlhf_jax.devices.processes import ending

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # jax.distributed has taken it
    try:
        build.run(config)
    except (KeyboardInterrupt, Exception) as error:
        status, lines = command.explained(error, place.directory, AGAIN)
        if not lines and not ending.is_from_a_call(error):
            traceback.print_exc()
        ending.leave(error, status)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: each update frees and takes the same megabytes, and pages given
    back are faulted in again.

    150 updates of the quickstart's SFT: 3.8 -> 1.2 s of system time. Does nothing under another C
    library.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    keep_freed_memory()
    command.outlive_readers()
    command.start(main)


if __name__ == "__main__":
    start()
