"""Parts of the pages that `experiments.results` writes: tables, figures with intervals, tests of
contrasts, sources.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from rlhf_jax.report.statistics import OfSeed, Result, detectable, holm, p_value, t_interval

LEVEL = 0.05


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. The first column is text. So is another one of whose cells more than half
    begin with a letter; numbers are aligned at the right.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    align = [
        "---"
        if index == 0 or 2 * sum(cell[:1].isalpha() for cell in column) > len(column)
        else "---:"
        for index, column in enumerate(columns)
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, align, *rows))


def with_interval(values: OfSeed | Sequence[float], digits: int, signed: bool = False) -> str:
    """ "mean ± half-width" of the 95 % t-interval; a single value has none; "–" for no value."""
    known = list(values.values() if isinstance(values, Mapping) else values)
    known = [value for value in known if not math.isnan(value)]
    if not known:
        return "–"
    mean, half = t_interval(known)
    text = number(mean, digits, signed)
    return text if math.isnan(half) else f"{text} ± {half:.{digits}f}"


def number(value: float, digits: int, signed: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Contrast:
    """A difference that is tested: its name, one value per seed, and the margin within which it
    counts as none.

    `note` follows the result on the page, such as a run that failed.
    """

    name: str
    values: OfSeed
    margin: float
    unit: str
    digits: int = 2
    note: str = ""


def verdict(contrast: Contrast, adjusted: float) -> str:
    """The result of a contrast in words, by the rule of the protocols.

    "No difference" where the 90 % interval lies inside the margin, else a difference where the
    adjusted p-value is below 0.05. Otherwise "not shown", with the least difference that would have
    been found with a power of 0.8.
    """
    values = list(contrast.values.values())
    mean, half = t_interval(values, 0.90)
    if abs(mean) + half < contrast.margin:
        return f"no difference beyond {contrast.margin:g} {contrast.unit}"
    if adjusted < LEVEL:
        return "larger" if mean > 0 else "smaller"
    return f"not shown; {number(detectable(values), contrast.digits)} {contrast.unit} would have been found"


def adjusted(contrasts: Sequence[Contrast]) -> list[float]:
    """Holm's p-values of the contrasts of a family."""
    return holm([_p_value(contrast) for contrast in contrasts])


def _p_value(contrast: Contrast) -> float:
    return p_value(list(contrast.values.values()))


def contrasts_table(contrasts: Sequence[Contrast]) -> str:
    """A row for each contrast of a family: mean with its 95 % interval, p-value, Holm's, and the
    verdict.
    """
    rows = []
    for contrast, corrected in zip(contrasts, adjusted(contrasts), strict=True):
        difference = with_interval(contrast.values, contrast.digits, signed=True)
        rows.append(
            [
                contrast.name,
                difference,
                probability(_p_value(contrast)),
                probability(corrected),
                "; ".join(filter(None, (verdict(contrast, corrected), contrast.note))),
            ]
        )
    return table(("contrast", "difference, 95 % interval", "p", "p, Holm", "result"), rows)


def conclusion(contrasts: Sequence[Contrast]) -> str:
    """A line for each contrast of a family, by the protocols' rule."""
    said = []
    for contrast, corrected in zip(contrasts, adjusted(contrasts), strict=True):
        difference = with_interval(contrast.values, contrast.digits, signed=True)
        said.append(
            f"* {contrast.name.partition('. ')[2]}: {difference} {contrast.unit}. Result: "
            f"{'; '.join(filter(None, (verdict(contrast, corrected), contrast.note)))}."
        )
    return "\n".join(said)


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def fill(template: Path, **values: object) -> str:
    """A page's text with its fields filled in; a field without a value is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    return environment.from_string(template.read_text()).render(**values)


def sources(lines: Sequence[Result]) -> str:
    """A sentence that says from what the page was written: cells, seeds, processors, commits and
    dates.
    """
    seeds = sorted({line["seed"] for line in lines})
    processors = Counter(line["processor"] for line in lines)
    dates = sorted({line["date"] for line in lines})
    commits = ", ".join(f"`{commit}`" for commit in sorted({line["commit"] for line in lines}))
    on = "; ".join(f"{count} on {name}" for name, count in processors.most_common())
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    listed = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{len(lines)} cells, seeds {listed}, run {when} at commit {commits} ({on})."
