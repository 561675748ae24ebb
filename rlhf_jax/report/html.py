"""Writes `report.html` of a run directory, and `plots/*.png`: what a person opens to see what the run did.

The page stands alone: figures are inside it, nothing is fetched, no script runs. Headline figures come first, then
curves, completions before and after, times, and the resolved config. A run that is not finished says what is missing.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.observe.lines import Line, replace
from rlhf_jax.report import read

FILE = "report.html"


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Writes `report.html` and `plots/*.png` by atomic renames; returns the path of the page.

    Raises FileNotFoundError where there is no run, Refusal that names file and line for a broken file, OSError.
    """
    from rlhf_jax.report import (
        body,
        page,
        style,
    )  # matplotlib takes a second, which no run should wait for at its start

    run = read.read_run(Path(directory))
    drawn = draw(run.lines, run.spans)
    (run.directory / "plots").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        style.write_png(figure, run.directory / "plots" / f"{name}.png")
    path = run.directory / FILE
    replace(path, page.page(run.title, body.body(run, drawn)).encode())
    return path


def draw(lines: Sequence[Line], spans: Sequence[Line] = ()) -> dict[str, Any]:
    """Every figure that the lines (and spans of the timeline) have something for, by the name of its file."""
    from rlhf_jax.report import plots, timeline, trade_off

    figures = {
        "learning_curves": plots.learning_curves(lines),
        "trade_off": trade_off.trade_off(lines),
        "timeline": timeline.draw(spans, lines),
        "time_per_stage": plots.time_per_stage(lines),
    }
    figures |= {f"stage_{stage}": plots.stage_curves(lines, stage) for stage in read.stages(lines)}
    return {name: figure for name, figure in figures.items() if figure is not None}
