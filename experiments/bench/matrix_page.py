"""Writes `docs/scale/compiled_recipes.md`: what libtpu says of each recipe's calls, beside what the
planner expects.

    python -m experiments.bench.matrix_page

Needs no libtpu. Figures are those that `python -m experiments.bench.matrix` has kept; the planner's
are of today.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.bench import matrix
from experiments.studies.markdown import table
from rlhf_jax.dataflow import Call
from rlhf_jax.devices.placement import parse
from rlhf_jax.planner.costs.analytic import AnalyticCostModel
from rlhf_jax.planner.problem import Problem
from rlhf_jax.types import Placement, Plan

PAGE = Path(__file__).parents[2] / "docs" / "scale" / "compiled_recipes.md"
FIGURES = ("working_bytes", "link_bytes", "flops")
COMPILED, EXTRAPOLATED, OLDER, FORMULA = "compiled", "extrapolated", "older program", "formula"


@dataclass(frozen=True)
class Said:
    """Figures of a call of the whole model, or None where there are none.

    Attributes:
      working_bytes: beside the call's arguments.
      link_bytes: that a device sends to others.
      flops: as XLA counts them: the body of a loop once.
      how: `COMPILED`, `EXTRAPOLATED`, with `OLDER` where a program is not that of today; `FORMULA`.
      programs: fingerprints of the compiled programs, by layers.
    """

    working_bytes: float | None
    link_bytes: float | None
    flops: float | None
    how: str
    programs: Mapping[int, str]


@cache
def problem(name: str) -> Problem:
    """A case as the planner sees it."""
    return matrix.problem_of(matrix.CASES[name])


def plan(name: str) -> Plan:
    """The plan that a case's programs were compiled with."""
    return parse(matrix.read_index()[name]["plan"])


def line_of(name: str, call: str, layers: int) -> tuple[dict[str, Any] | None, bool]:
    """Figures of a call at a depth, and True where they are of the program of today."""
    slice_ = matrix.CASES[name].slice
    programs = matrix.read_index()[name]["programs"].get(call, {})
    lines = matrix.read_figures()
    if (found := lines.get((slice_, programs.get(str(layers), "")))) is not None:
        return found, True
    key = name, call, layers
    older = [line for line in lines.values() if (line["case"], line["call"], line["layers"]) == key]
    return (older[-1], False) if older else (None, False)


def said(name: str, call: str, extrapolate: bool = False) -> Said:
    """The compiler's figures of a case's call for the whole model.

    Args:
      name: of the case.
      call: its name.
      extrapolate: from the reduced models even where the whole model was compiled.
    """
    case = matrix.CASES[name]
    role = next(each.role for each in problem(name).calls if each.name == call)
    whole = matrix.read_index()[name]["layers"][role]
    line, today = line_of(name, call, whole)
    if line is not None and not line["reason"] and not extrapolate:
        values = [float(line[key]) for key in FIGURES]
        how = COMPILED if today else f"{COMPILED}, {OLDER}"
        return Said(*values, how, {whole: line["fingerprint"]})
    found = [line_of(name, call, layers) for layers in case.depths]
    lines = [line for line, _ in found if line is not None and not line["reason"]]
    if len(lines) < len(case.depths) or len(case.depths) < 2:
        return Said(None, None, None, FORMULA, {})
    (few, many), (first, last) = case.depths, lines
    slopes = [(last[key] - first[key]) / (many - few) for key in FIGURES]
    values = [
        first[key] + (whole - few) * slope for key, slope in zip(FIGURES, slopes, strict=True)
    ]
    programs = {line["layers"]: line["fingerprint"] for line in lines}
    how = EXTRAPOLATED if all(today for _, today in found) else f"{EXTRAPOLATED}, {OLDER}"
    return Said(*values, how, programs)


def placed(name: str) -> Iterator[tuple[Call, Placement, AnalyticCostModel]]:
    """The calls of a case with their placements and the planner's costs."""
    of, chosen = problem(name), plan(name)
    for call in of.calls:
        yield call, chosen.placements[call.name], of.formulas()


@dataclass(frozen=True)
class Peak:
    """The memory of a case's fullest moment, in bytes of a device.

    Attributes:
      stays: states, frozen params and the published versions that an update finds, by the planner.
      compiled: with the most that a compiled call needs; None where a call is not compiled that the
        planner expects to need more than any compiled one.
      expected: by the planner alone.
      memory: of the device; `usable` of it may be used.
    """

    stays: float
    compiled: float | None
    expected: float
    memory: float
    usable: float

    @property
    def difference(self) -> float | None:
        """The planner's figure less the compiler's, as a share of the device's memory."""
        return None if self.compiled is None else (self.expected - self.compiled) / self.memory


def peak(name: str) -> Peak:
    """The memory of a case as the compiler and as the planner see it."""
    of = problem(name)
    stays, costs = of.resident_bytes(plan(name)), of.formulas()
    further = {call.name: of.further_bytes(call, place) for call, place, _ in placed(name)}
    expected = {
        call.name: costs.working_bytes(call, place) + further[call.name]
        for call, place, _ in placed(name)
    }
    known = {
        call: value + further[call]
        for call in expected
        if (value := said(name, call).working_bytes)
    }
    most = max(known.values(), default=0.0)
    complete = known and all(expected[call] <= most for call in set(expected) - set(known))
    return Peak(
        stays,
        stays + most if complete else None,
        stays + max(expected.values()),
        costs.hardware.memory_bytes,
        costs.device_bytes,
    )


def _peaks() -> str:
    head = ["recipe", "slice", "stays", "peak, compiler", "peak, planner", "difference", "plan"]
    rows = []
    for name, case in matrix.CASES.items():
        if name not in matrix.read_index():
            continue
        found = peak(name)
        apart = "–" if found.difference is None else f"{100 * found.difference:+.1f} %"
        cells = [_gigabytes(each) for each in (found.stays, found.compiled, found.expected)]
        text = matrix.read_index()[name]["plan"]
        rows.append(
            [name, f"{case.slice}, {found.memory / 1e9:.0f} GB", *cells, apart, f"`{text}`"]
        )
    return table(head, rows)


def _calls() -> str:
    head = ["recipe", "call", "beside arguments", "planner", "links", "planner, links", "FLOPs",
            "how", "programs"]  # fmt: skip
    rows = []
    for name in matrix.read_index():
        for call, placement, costs in placed(name):
            found = said(name, call.name)
            cells = [
                _gigabytes(found.working_bytes),
                _gigabytes(costs.working_bytes(call, placement)),
            ]
            cells += [_gigabytes(found.link_bytes), _gigabytes(costs.link_bytes(call, placement))]
            flops = "–" if found.flops is None else f"{found.flops:.3g}"
            programs = ", ".join(f"{key}: `{value}`" for key, value in found.programs.items())
            rows.append([name, call.name, *cells, flops, found.how, programs or "–"])
    return table(head, rows)


def _whole() -> str:
    """A row for each figure of a call that was compiled at its whole depth."""
    rows = []
    for name in matrix.read_index():
        for call, _, _ in placed(name):
            whole, line = said(name, call.name), said(name, call.name, extrapolate=True)
            if not whole.how.startswith(COMPILED) or line.working_bytes is None:
                continue
            for key in FIGURES:
                compiled, reduced = getattr(whole, key), getattr(line, key)
                apart = f"{100 * (reduced / compiled - 1):+.1f} %"
                label = key.replace("_bytes", "").replace("working", "beside arguments")
                rows.append([name, call.name, label, f"{compiled:.4g}", f"{reduced:.4g}", apart])
    head = ["recipe", "call", "figure", "whole model", "from 2 and 4 layers", "difference"]
    return table(head, rows)


def _gigabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e9:.3g}"


def page() -> str:
    """The page as Markdown."""
    return PREAMBLE + _peaks() + CALLS + _calls() + WHOLE + _whole() + UNMEASURED


PREAMBLE = """# What the compiler says of each recipe

**Does a recipe fit on its TPUs by the compiler too, and does the planner expect what the compiler
makes of it?**

Each recipe is compiled by libtpu for the slice that its docstring names, under the plan that `plan=fit`
chooses for the whole models. GB of 10⁹ bytes a device. "Stays" (states, frozen params, published
versions) is the planner's figure; a peak is that and the most that a call needs beside its arguments.
The gold model of TL;DR is left out, of plans and of figures: it is no call of a round.
The difference is the planner's peak less the compiler's, of the device's memory. The notebooks' models
are compiled for one chip, in rounds no smaller than theirs; notebook 02 has the calls of 01 with a loss
of its own, and 03 has no model.

"""

CALLS = """

A row is "extrapolated" where models of two and of four layers were compiled, "compiled" where the whole
model was, and "formula" where nothing was. "Older program" says that the code lowers to another program
since. FLOPs are XLA's count: the body of a loop once. Links count a loop as often as it runs.

"""

WHOLE = """

Calls that were compiled at their whole depth, beside the line through two and four layers:

"""

UNMEASURED = """

## What no TPU has shown

Nothing of this page ran on a TPU. The compiler's bytes and FLOPs are exact of its programs. Unmeasured
are all seconds: of calls, of links, of a round, and how much of them overlaps. So are the memory that
the runtime takes beside a program and what fragments leave, for which the planner keeps 8 % free; and
the steps that decoding takes with lengths of a real policy.

`python -m experiments.bench.matrix --index` writes the plans and fingerprints of today, without libtpu.
`python -m experiments.bench.matrix` compiles each program that has no figures yet
(`pip install 'rlhf_jax[tpu-compile]'`), and `python -m experiments.bench.matrix_page` writes this page.
"""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
