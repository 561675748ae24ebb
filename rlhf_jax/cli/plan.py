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
printed and drawn. What cannot be planned is one line and exit status 2.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.cli import command, run
from rlhf_jax.refusal import Refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Plans a config. Returns the exit status: see `command.py`."""
    parser = argparse.ArgumentParser(
        prog=command.program("plan"),
        usage="%(prog)s (NAME | --config=FILE) [--config.<key>=<value> ...] [options]",
        description="Finds where each call of a config's rounds should run.",
        epilog="NAME, --config=FILE and --config.<key>=<value> are as in the command run; with "
        "--help beside a config its "
        "keys are listed, with the values that they have",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and exit")
    parser.add_argument(
        "--devices", type=int, default=0, help="how many; those at hand if not given"
    )
    parser.add_argument(
        "--hardware", default="", help="h100, h200, a100-80gb, tpu-v5e, tpu-v5p, tpu-v6e or cpu"
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
            parser.print_help()
            if rest:
                print(f"\n{run.keys_of(run.parse([parser.prog, *rest]))}")
            return
        place.directory = options.output.parent
        _plan(run.parse([parser.prog, *rest]), options)

    return command.call(body)


def _plan(config: Any, options: argparse.Namespace) -> None:
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
    from rlhf_jax.planner.costs import hardware
    from rlhf_jax.stages.common import planning

    device = (
        hardware.find(options.hardware)
        if options.hardware
        else hardware.of_device(jax.devices()[0])
    )
    here = 0 if options.hardware else len(jax.devices())
    if here and options.devices > here:
        raise Refusal(
            f"--devices is {options.devices}, but {here} are here; --hardware={device.name} plans "
            "without them"
        )
    lengths = planning.drawn_lengths(options.lengths) if options.lengths else ()
    problem = build.problem(config, device, options.devices or here or 1, lengths)
    profile = None
    if config.plan and config.plan != planning.SEARCH:
        show_written(problem, config.plan, options.output)
        return
    if options.profile:
        workspace, stages, algorithm = build.parts(config)
        spec = planning.spec_of(workspace, stages, algorithm)
        found, profile = planning.profiled(problem, spec, planning.PROFILE)
        print(f"{len(profile.known)} figures measured, in {planning.PROFILE}")
    else:
        found = problem.search()
    show(problem, found, profile, options.output)


def heading(problem: Any) -> str:
    """Devices, models and work of a round in one line."""
    work = problem.work
    shapes = ", ".join(
        f"{role} {shape.num_params / 1e9:.3g}B" for role, shape in problem.shapes.items()
    )
    return (
        f"{problem.num_devices} x {problem.hardware.name}; {shapes}; {work.num_prompts} prompts x "
        f"{work.samples_per_prompt} a round, {work.loop} loop, lag {work.lag}\n"
    )


def show_written(problem: Any, text: str, output: Path) -> None:
    """Prints the simulation of a plan that was written by hand. Calls that it does not name are
    sharded along `data` on all devices.
    """
    from rlhf_jax.devices.placement import parse
    from rlhf_jax.report.plots import gantt
    from rlhf_jax.types import Placement

    everywhere = Placement(tuple(range(problem.num_devices)), (problem.num_devices, 1, 1))
    found = problem.expected(parse(text), everywhere)
    print(heading(problem))
    print(gantt.table(found.simulation))
    draw(found.simulation, output)


def draw(simulation: Any, output: Path) -> None:
    """Writes the picture."""
    from rlhf_jax.report.plots import gantt, style

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        style.write_png(gantt.draw(simulation), output)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise Refusal(f"--output is {output}, which cannot be written: {error.strerror}") from error
    print(f"picture: {output}")


def show(problem: Any, found: Any, profile: Any, output: Path) -> None:
    """Prints and draws what was found."""
    from rlhf_jax.devices.placement import text_of
    from rlhf_jax.planner.search.search import advice
    from rlhf_jax.report.plots import gantt

    chosen = found.advised
    print(heading(problem))
    print(gantt.table(chosen.simulation))
    if profile is not None and (missing := profile.missing(problem.calls, chosen.plan)):
        print(f"not measured, but by formulas: {', '.join(missing)}")
    print(f"\n{verdict(found)}")
    for place, other in enumerate(found.others, 2):
        print(f"{place}. {other.why}")
    print(f"\n{advice(*_both_loops(problem, found, profile))}")
    print(f'\nrun it:  --config.plan="{text_of(chosen.plan)}"')
    draw(chosen.simulation, output)


def verdict(found: Any) -> str:
    """A sentence that compares the plan with one mesh for every call."""
    proof = "proven best" if found.proven else "the best one found"
    least = found.best.simulation.seconds_per_round
    if found.default is None:
        return f"{proof} by these costs, whose errors are not in that; one mesh for every call does not fit"
    simple = found.default.simulation.seconds_per_round
    if found.advised is found.default:
        gain = 100 * (1 - least / simple)
        return f"one mesh for every call; the best plan by these costs would gain {gain:.1f} %, less than they err"
    return f"{proof} by these costs, whose errors are not in that; one mesh for every call: {found.default.why}"


def _both_loops(problem: Any, found: Any, profile: Any) -> tuple[Any, Any]:
    """Results for the synchronous loop at lag 0 and the asynchronous one; the one at hand is not
    searched again.
    """
    settings = (("synchronous", 0), ("asynchronous", max(1, problem.work.lag)))
    return tuple(
        found
        if (problem.work.loop, problem.work.lag) == setting
        else problem.with_loop(*setting).search(profile and profile.of_loop(*setting))
        for setting in settings
    )  # type: ignore[return-value]


def start() -> None:
    """Runs the command on the arguments of the command line."""
    command.start(main)


if __name__ == "__main__":
    start()
