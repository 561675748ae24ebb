"""Plans the RLHF stage of a config: where each call of a round should run, what is expected of it,
and what to do about it.

    python -m experiments.plan --config=configs/tldr/ppo.py --devices=8 --hardware=h100
    python -m experiments.plan --config=configs/quickstart.py --profile

Without `--hardware` it plans for the devices at hand. `--profile` times the calls of promising
plans there, with one layer and with two, and keeps the figures in runs/profile.json, where runs
with --config.plan=search find them. `--lengths=RUN` takes the lengths of that run's completions.
Any key of the config may be given anew (`--config.rlhf.lag=1`). Prints a table, what the next plans
lack, one sentence of advice and the plan as a run takes it; draws the expected rounds. A plan that
the config writes out (`--config.plan="..."`) is not searched for, but what is expected of it is
printed and drawn. Beside what was found stands `plan=fit`: the config's own mesh, with calls cut so
that they fit in memory. What cannot be planned is one line and exit status 2.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlhf_jax.cli import command, run
from rlhf_jax.refusal import Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans a config. Returns the exit status: see `command.py`."""
    parser = run.options_beside(
        "plan",
        "Finds where each call of a config's rounds should run.",
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="how many; those at hand if not given"
    )
    parser.add_argument(
        "--hardware",
        default="",
        help="h100, h200, a100-80gb, a100-40gb, l40s, t4, tpu-v5e, tpu-v5p, tpu-v6e or cpu",
    )
    parser.add_argument("--profile", action="store_true", help="time calls on the devices at hand")
    parser.add_argument(
        "--lengths", type=Path, help="a run's directory: lengths of its completions"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("plan.png"), help="the picture of the expected rounds"
    )
    options, rest = parser.parse_known_args(arguments)

    def body(place: command.Place) -> None:
        if options.help:
            run.print_help(parser, rest)
            return
        place.directory = options.output.parent
        _plan(run.parse([parser.prog, *rest]), options)

    return command.call(body)


def _plan(config: ConfigDict, options: argparse.Namespace) -> None:
    if options.devices < 0:
        raise Refusal(f"--devices is {options.devices}; accepted: 1 or more")
    if options.profile and options.hardware:
        raise Refusal(
            "--profile times the devices at hand, whatever they are: leave --hardware away"
        )
    import jax

    if options.devices and "XLA_FLAGS" not in os.environ and not options.hardware:
        jax.config.update("jax_num_cpu_devices", options.devices)
    from rlhf_jax import build
    from rlhf_jax.cli.tables import plan as table
    from rlhf_jax.config import fill
    from rlhf_jax.devices import mesh
    from rlhf_jax.planner.costs import hardware
    from rlhf_jax.stages.common import planning
    from rlhf_jax.stages.settings import rlhf
    from rlhf_jax.types import Placement

    device = (
        hardware.find(options.hardware) if options.hardware else hardware.lookup(jax.devices()[0])
    )
    here = 0 if options.hardware else len(jax.devices())
    if here and options.devices > here:
        raise Refusal(
            f"--devices is {options.devices}, but {here} are here; --hardware={device.name} plans "
            "without them"
        )
    lengths = planning.drawn_lengths(options.lengths) if options.lengths else ()
    problem = build.problem(config, device, options.devices or here or 1, lengths)
    if here:
        problem = dataclasses.replace(problem, hosts=1)  # of one process, which has them all
    profile = None
    values = config.to_dict()
    on = fill(mesh.Config, values["mesh"], "mesh")
    if problem.num_hosts > 1 and on.fsdp_hosts != 1:
        raise Refusal(
            f"mesh.fsdp_hosts is {on.fsdp_hosts}: a plan over {problem.num_hosts} hosts of "
            f"{problem.devices_of_host} devices has all params on each host; accepted: 1"
        )
    settings = fill(rlhf.Config, values["rlhf"], "rlhf")
    if advice := rlhf.advice(settings, values["lengths"]["max_completion_tokens"], lengths):
        print(advice)
    if config.plan and config.plan not in planning.CHOSEN:
        table.show_written(problem, str(config.plan), options.output)
        return
    if options.profile:
        command.use_compile_cache(config.get("compile_cache"))
        workspace, stages, algorithm = build.parts(config)
        spec = planning.spec_of(workspace, stages, algorithm)
        found, profile = planning.profiled(problem, spec, planning.PROFILE)
        print(f"{len(profile.known)} figures measured, in {planning.PROFILE}")
    else:
        found = problem.search()
    shape = mesh.mesh_shape(on, problem.devices_of_host)
    trainer = Placement(tuple(range(math.prod(shape))), shape)
    table.show(problem, found, profile, trainer, options.output)


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
