"""Compiles the calls of a config's rounds for devices that need not be here, and says what each
would take.

    rlhf-jax compile configs/tldr/online_dpo.py --topology=v5e:2x4 --num_layers=1
    python -m experiments.compile --config=configs/tiny.py --topology=cpu:8 --calls=train_policy

The calls are the run's own, made from shapes: no weights, no data and no accelerator are needed. A
TPU is compiled for by libtpu (`pip install 'rlhf_jax[tpu-compile]'`). `here` compiles for the devices
at hand, whatever they are. What cannot be compiled is one line and exit status 2.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.cli import command, run
from rlhf_jax.devices import topology
from rlhf_jax.refusal import Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles a config's calls. Returns the exit status: see `command.py`."""
    parser = run.options_beside(
        "compile",
        "Compiles the calls of a config's rounds from shapes: memory, FLOPs and "
        "collectives of a device.",
    )
    parser.add_argument(
        "--topology", default=topology.HERE, help=f"devices to compile for: {topology.ACCEPTED}"
    )
    parser.add_argument(
        "--calls", default="", help="names between commas, such as generate,train_policy; else all"
    )
    parser.add_argument(
        "--num_layers", type=int, default=0, help="of every model, in place of its own: cheaper"
    )
    parser.add_argument("--output", type=Path, help="a file for all figures, as JSON")
    parser.add_argument("--hlo", type=Path, help="a folder for the compiled programs' texts")
    options, rest = parser.parse_known_args(arguments)

    def body(place: command.Place) -> None:
        if options.help:
            run.print_help(parser, rest)
            return
        if options.output is not None:
            place.directory = options.output.parent
        wanted = topology.parse(options.topology)
        os.environ.update(wanted.environment)  # before a config file imports jax
        _compile(run.parse([parser.prog, *rest]), wanted, options)

    return command.call(body)


def _compile(config: ConfigDict, wanted: topology.Topology, options: argparse.Namespace) -> None:
    if options.num_layers < 0:
        raise Refusal(f"--num_layers is {options.num_layers}; accepted: 1 or more")
    from rlhf_jax.building import from_shapes
    from rlhf_jax.cli.tables import compile as table

    devices = topology.devices_by_host(wanted)
    found = from_shapes.shaped(config, devices, options.num_layers)
    with found.standing_in():
        calls = _calls(options.calls, found.program.compiled_names)
    print(table.heading(wanted.name, found), flush=True)
    rows = []
    with uncached():
        for call in calls:
            rows.append(table.compiled(found, call, options.hlo))
            print(table.row(found, rows[-1]), flush=True)
    for line in table.verdict(found, rows):
        print(line)
    if options.output is not None:
        _write(options.output, wanted, options, table.figures(found, rows))


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Keeps JAX's compile cache off: a program from it has no seconds of compiling."""
    import jax

    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _calls(text: str, names: Sequence[str]) -> list[str]:
    chosen = [name for name in text.split(",") if name] or list(names)
    if unknown := [name for name in chosen if name not in names]:
        raise Refusal(f"--calls has {unknown[0]!r}; accepted: {', '.join(names)}")
    return chosen


def _write(
    path: Path, wanted: topology.Topology, options: argparse.Namespace, figures: dict[str, Any]
) -> None:
    import jax

    versions = {"jax": jax.__version__}
    if wanted.is_tpu:
        import importlib.metadata

        versions["libtpu"] = importlib.metadata.version("libtpu")
    ran = f"{command.program('compile')} {shlex.join(sys.argv[1:])}"
    given = {
        "command": ran,
        "topology": wanted.name,
        "num_layers": options.num_layers,
        "versions": versions,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(given | figures, indent=1) + "\n")
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise Refusal(f"--output is {path}, which cannot be written: {error.strerror}") from error
    print(f"figures: {path}")


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
