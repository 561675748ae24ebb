"""Prints and draws what the command `plan` found: a table, the next plans, one sentence of advice."""

from collections.abc import Mapping
from pathlib import Path

from rlhf_jax.dataflow import Loop
from rlhf_jax.devices.placement import parse, text_of
from rlhf_jax.planner.costs.measured import MeasuredCostModel
from rlhf_jax.planner.costs.shapes import Shape
from rlhf_jax.planner.problem import Problem
from rlhf_jax.planner.search.search import Found, advice
from rlhf_jax.planner.simulation.plan_memory import gigabytes
from rlhf_jax.planner.simulation.simulate import Simulation
from rlhf_jax.refusal import Refusal
from rlhf_jax.report.plots import gantt, style
from rlhf_jax.types import Placement


def heading(problem: Problem) -> str:
    """Devices, models and work of a round in one line."""
    work = problem.work
    shapes = ", ".join(
        f"{role} {shape.num_params / 1e9:.3g}B" for role, shape in _shapes(problem).items()
    )
    of_hosts = f"{problem.num_hosts} hosts of " if problem.num_hosts > 1 else ""
    return (
        f"{of_hosts}{problem.devices_of_host} x {problem.hardware.name}; {shapes}; {work.prompts_text} x "
        f"{work.samples_per_prompt} a round, {work.loop} loop, lag {work.lag}\n"
    )


def _shapes(problem: Problem) -> Mapping[str, Shape]:
    """The shapes of the roles, and of a gold model."""
    return {**problem.shapes, **({"gold": problem.gold.shape} if problem.gold else {})}


def beside_rounds(problem: Problem, simulation: Simulation) -> str:
    """Two lines about the gold model that scores beside the rounds; "" without one.

    Args:
      problem: that was planned.
      simulation: of the plan, whose figures are of the round's calls.
    """
    if problem.gold is None:
        return ""
    gold, costs, seconds = problem.gold, problem.formulas(), problem.gold_seconds()
    whole = max(simulation.memory_bytes) + costs.held_bytes
    each = simulation.seconds_per_round + seconds.of_each_round
    of_round = f"the rows of a round in {seconds.of_round:.3g} s, " if gold.rows_per_round else ""
    return (
        f"gold model: {gigabytes(costs.held_bytes)} of a device stay beside that, "
        f"{gigabytes(whole)} in all; it scores between the calls, with "
        f"{gigabytes(costs.scoring_bytes)} beside what stays\n"
        f"gold scores {of_round}an evaluation of {gold.rows_per_evaluation} rows in "
        f"{seconds.of_evaluation:.3g} s: {each:.3g} s a round with it"
    )


def print_simulation(problem: Problem, simulation: Simulation) -> None:
    """Prints the table of a plan, and what a gold model takes beside its rounds."""
    print(gantt.table(simulation))
    if text := beside_rounds(problem, simulation):
        print(text)


def show_written(problem: Problem, text: str, output: Path) -> None:
    """Prints the simulation of a plan that was written by hand. Calls that it does not name are
    sharded along `data` on all devices.
    """
    of_host = problem.devices_of_host
    everywhere = Placement(tuple(range(of_host)), (of_host, 1, 1))
    found = problem.expected(parse(text), everywhere)
    print(heading(problem))
    print_simulation(problem, found.simulation)
    draw(found.simulation, output)


def draw(simulation: Simulation, output: Path) -> None:
    """Writes the picture."""

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        style.write_png(gantt.draw(simulation), output)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise Refusal(f"--output is {output}, which cannot be written: {error.strerror}") from error
    print(f"picture: {output}")


def show(
    problem: Problem,
    found: Found,
    profile: MeasuredCostModel | None,
    trainer: Placement,
    output: Path,
) -> None:
    """Prints and draws what was found, and tells what is expected of `plan=fit`.

    Args:
      problem: that was searched.
      found: the plans.
      profile: what was measured, if anything was.
      trainer: the devices and the mesh of the config.
      output: the picture.
    """

    chosen = found.advised
    print(heading(problem))
    print_simulation(problem, chosen.simulation)
    if profile is not None and (missing := profile.missing(problem.calls, chosen.plan)):
        print(f"not measured, but by formulas: {', '.join(missing)}")
    print(f"\n{verdict(found)}")
    for place, other in enumerate(found.others, 2):
        print(f"{place}. {other.why}")
    print(f"\n{advice(*_both_loops(problem, found, profile))}")
    print(f'\nrun it:  --config.plan="{text_of(chosen.plan)}"')
    print(_on_own_mesh(problem, trainer))
    draw(chosen.simulation, output)


def _on_own_mesh(problem: Problem, trainer: Placement) -> str:
    """One line about `plan=fit`, or about its plan, which a run on several hosts takes as text."""
    hosts = problem.num_hosts > 1
    try:
        plan = problem.fit(trainer)
    except Refusal as error:
        return f"or on the config's own mesh{'' if hosts else ', --config.plan=fit'}: {error}"
    seconds = problem.expected(plan).simulation.seconds_per_round
    if hosts:
        return (
            f"or on the config's own mesh, {seconds:.3g} s a round:  "
            f'--config.plan="{text_of(plan)}"'
        )
    return (
        f"or on the config's own mesh, --config.plan=fit: {seconds:.3g} s a round, "
        f'"{text_of(plan)}"'
    )


def verdict(found: Found) -> str:
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


def _both_loops(
    problem: Problem, found: Found, profile: MeasuredCostModel | None
) -> tuple[Found, Found]:
    """Results for the synchronous loop at lag 0 and the asynchronous one; the one at hand is not
    searched again.
    """

    def result(loop: Loop, lag: int) -> Found:
        if (problem.work.loop, problem.work.lag) == (loop, lag):
            return found
        return problem.with_loop(loop, lag).search(profile and profile.with_loop(loop, lag))

    return result("synchronous", 0), result("asynchronous", max(1, problem.work.lag))
