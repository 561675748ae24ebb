"""Runs an experiment: `python -m experiments.run --config=configs/quickstart.py [--config.<key>=<value> ...]`."""

import contextlib
import ctypes
import difflib
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from rlhf_jax.refusal import Refusal

USAGE = "accepted: --config=FILE and --config.<key>=<value>"
INTERRUPTED = 130  # what a shell reports for SIGINT
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config that the arguments name, with its overrides. What is wrong with them is one line and exit status 2."""
    path = ""
    try:
        path = config_path(argv)
        check_keys(load([argv[0], f"--config={path}"]), argv)
        return load(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        stop(Refusal(f"--config={path}: {cause}") if (cause := in_config_file(error)) else error)


def in_config_file(error: BaseException) -> str | None:
    """What a config file's own code raised, where the flag's error holds its whole traceback: the last line's message."""
    text = str(error).strip()
    if "Error whilst parsing config file" not in text or "Traceback" not in text:
        return None
    kind, _, message = text.splitlines()[-1].partition(": ")
    return message if kind.rpartition(".")[2] in ("Refusal", "MissingInput", "ValueError") else f"{kind}: {message}"


def load(argv: Sequence[str]) -> ConfigDict:
    """Reads flags into values of their own, so that a process may read as many configs as it likes."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(argv))
    rest = values(list(argv))
    if len(rest) > 1:
        raise Refusal(f"unknown argument {rest[1]!r}; {USAGE}")
    return config.value


def config_path(argv: Sequence[str]) -> str:
    """What `--config` names, its `:argument` included. Raises Refusal where there is none, or no such file."""
    named = [following for flag, following in pairwise(argv) if flag == "--config"]
    named += [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    files = [path for path in Path("configs").rglob("[!_]*.py") if path.parent.name != "studies"]
    there = ", ".join(map(str, sorted(files)))
    if not named:
        raise Refusal(f"no config is given; pass --config=FILE, a file of configs/ ({there}) or your own")
    if not Path(named[-1].partition(":")[0]).is_file():
        raise Refusal(f"no config file {named[-1]!r}; there are: {there}")
    return named[-1]


def check_keys(config: ConfigDict, argv: Sequence[str]) -> None:
    """Raises Refusal for an override of a key that the config lacks, with the nearest one or all of its neighbours."""
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        keys, node = argument.removeprefix("--config.").partition("=")[0].split("."), config
        for depth, key in enumerate(keys):
            if not isinstance(node, ConfigDict) or key not in node:
                raise Refusal(f"{'.'.join(['config', *keys[:depth]])} has no key {key!r}{_neighbours(key, node)}")
            node = node[key]


def _neighbours(key: str, node: Any) -> str:
    names = list(node) if isinstance(node, ConfigDict) else []
    close = difflib.get_close_matches(key, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; accepted: {', '.join(names) or 'no keys below it'}"


def stop(error: BaseException, status: int = 2) -> NoReturn:
    """Prints what went wrong in one line and leaves with `status`."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(status)


def main(argv: Sequence[str] | None = None) -> None:
    """Exit status 2: the config cannot run; 1: the disk failed, or a figure that training needs is not finite; 130:
    interrupted, or preempted (SIGTERM). The same command goes on. Several processes: see `runtime/hosts.py`."""
    try:
        config = parse(sys.argv if argv is None else argv)
        from rlhf_jax import build
        from rlhf_jax.runtime import hosts

        if hosts.initialize():
            run_with_others(config)
        else:
            build.run(config)
    except Refusal as error:
        stop(error)
    except (OSError, FloatingPointError) as error:
        stop(error, 1)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def run_with_others(config: ConfigDict) -> None:
    """As one of several processes, which end together: what goes wrong in one ends it at once, and the others hear of it."""
    from rlhf_jax import build
    from rlhf_jax.runtime import hosts

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # jax.distributed has taken it
    try:
        build.run(config)
    except KeyboardInterrupt as error:
        hosts.leave(error, INTERRUPTED)
    except Refusal as error:
        hosts.leave(error, 2)
    except Exception as error:
        if not isinstance(error, (OSError, FloatingPointError)) and not hosts.is_from_a_call(error):
            traceback.print_exc()
        hosts.leave(error, 1)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed: each update frees and takes the same megabytes, and pages given back are faulted in again.

    150 updates of the quickstart's SFT: 3.8 -> 1.2 s of system time. Does nothing under another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


if __name__ == "__main__":
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # preemption ends a run as Ctrl-C does
    main()
