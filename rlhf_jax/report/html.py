"""Writes `report.html` of a run directory, and `plots/*.png`: what a person opens to see what the
run did.

The page stands alone: figures are inside it, nothing is fetched, no script runs. Headline figures
come first, then what the run is, curves, completions before and after, times, and the resolved
config. A run that is not finished says what is missing.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.records.jsonl import replace
from rlhf_jax.report import read, rendering

FILE = "report.html"
TEMPLATE = "templates/run.html.jinja"
FILE_COLUMNS = {"time_per_stage": 1, "trade_off": 2, "timeline": 2, "tokens": 2}
"""Pictures beside each other in a PNG; 3 where nothing is said."""


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Writes `report.html` and `plots/*.png` by atomic renames; returns the path of the page.

    Raises FileNotFoundError where there is no run, Refusal that names file and line for a broken
    file, OSError.
    """
    from rlhf_jax.report.plots import style  # matplotlib takes a second to import

    run = read.read_run(Path(directory))
    drawn = draw(run)
    (run.directory / "plots").mkdir(exist_ok=True)
    for name, pictures in drawn.items():
        figure = style.sheet(pictures, min(len(pictures), FILE_COLUMNS.get(name, 3)))
        style.write_png(figure, run.directory / "plots" / f"{name}.png")
    path = run.directory / FILE
    replace(path, render(run, drawn).encode())
    return path


def render(run: read.Run, drawn: Mapping[str, Sequence[Any]]) -> str:
    """The page.

    Args:
      run: that is reported.
      drawn: pictures by the name of their file, as `draw` gives them.
    """
    from rlhf_jax.report import body

    return rendering.page(TEMPLATE, **body.values(run, drawn))


def draw(run: read.Run) -> dict[str, list[Any]]:
    """Every picture that a run has something for, by the name of the file that they share."""
    from rlhf_jax.report import units
    from rlhf_jax.report.plots import curves, timeline, tokens, trade_off

    measured = units.resolve(run.config, run.lines, run.samples)
    pictures = {
        "learning_curves": curves.learning_curves(run.lines, measured),
        "trade_off": trade_off.trade_off(run.lines, measured),
        "timeline": timeline.pictures(run.spans, run.lines),
        "tokens": tokens.pictures(run.tokens_by_version),
        "time_per_stage": curves.time_per_stage(run.lines),
    }
    for stage in read.stages(run.lines):
        pictures[f"stage_{stage}"] = curves.stage_curves(run.lines, measured, stage)
    return {name: drawings for name, drawings in pictures.items() if drawings}
