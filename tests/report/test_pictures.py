"""Pictures of a report: no label leaves its picture, on a broad page and on a narrow one."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.report import html, read
from rlhf_jax.report.plots import curves, style, timeline
from rlhf_jax.report.plots.style import Picture

pytestmark = pytest.mark.pictures

DOTS = 1.5
"""Of a hundred an inch: how far the box of a text may pass the edge, where the letters do not."""


def clipped(figure: Figure) -> list[str]:
    """The texts that are not whole inside of the figure."""
    figure.set_dpi(100)
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    hidden = {tick_label for ax in figure.axes for tick_label in out_of_view(ax)}
    shown = [
        (text, text.get_window_extent())
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text() and text not in hidden
    ]
    return [
        text.get_text()
        for text, box in shown
        if box.x0 < -DOTS or box.y0 < -DOTS or box.x1 > width + DOTS or box.y1 > height + DOTS
    ]


def out_of_view(ax: Axes) -> list[Text]:
    """The labels of ticks beyond the ends of an axis, which are not drawn."""
    labels = []
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-6 * (high - low)
        labels += [
            tick.label1
            for tick in axis.get_major_ticks()
            if not low - slack <= tick.get_loc() <= high + slack
        ]
    return labels


def variants(pictures: list[Picture]) -> list[Picture]:
    return pictures + [picture.narrow for picture in pictures if picture.narrow is not None]


def test_no_label_of_a_run_is_clipped(run_directory: Path) -> None:
    """Those of a figure with a long name and a stage of many minutes too."""
    with MetricsWriter(run_directory) as writer:
        long = {"reward_of_a_term_whose_name_is_long_and_says_where_it_is_from": 1.0}
        writer.write("reward_model", 41, {**long, "tiny": -1.234e-7, "huge": -1.5e11})
        writer.write_timing("best_of_n", {"wall_seconds": 3725.0, "compile_seconds": 61.0})
    drawn = html.draw(read.read_run(run_directory))
    assert drawn.keys() >= {"learning_curves", "trade_off", "time_per_stage", "stage_reward_model"}
    pictures = [picture for part in drawn.values() for picture in variants(part)]
    lost = {picture.name: clipped(style.sheet([picture])) for picture in pictures}
    assert not {name: texts for name, texts in lost.items() if texts}


def test_a_wide_picture_has_one_for_a_narrow_page(run_directory: Path) -> None:
    """Its letters are then as large as those of a learning curve, beside which it stands."""
    drawn = html.draw(read.read_run(run_directory))
    assert drawn
    for picture in (picture for part in drawn.values() for picture in part):
        shown = picture.narrow or picture
        assert shown.width <= 4.0, picture.name


def spans(num_rounds: int) -> list[Line]:
    lines = []
    for index in range(num_rounds):
        for side, what, begin, end in (
            ("sampler", "generate", 0.0, 0.6),
            ("trainer", "train", 0.0, 0.9),
            ("trainer", "host", 0.9, 1.0),
        ):
            lines.append(
                {"stage": "rlhf", "began": 1.0, "side": side, "what": what, "round_index": index}
                | {"begin": 1000.0 + index + begin, "end": 1000.0 + index + end}
            )
    return lines


@pytest.mark.parametrize("num_rounds", [1, 12])
def test_no_label_of_a_timeline_is_clipped(num_rounds: int) -> None:
    pictures = variants(timeline.pictures(spans(num_rounds), []))
    assert [picture.width for picture in pictures] == [8.6, 3.9]
    for picture in pictures:
        assert not clipped(style.sheet([picture]))


def test_a_clipped_label_is_seen() -> None:
    lines = [{"stage": "sft", "kind": "timing", "wall_seconds": 1.0}]
    (picture,) = curves.time_per_stage(lines)
    figure = style.sheet([picture])
    figure.axes[0].set_title("long " * 80, loc="left")
    assert clipped(figure) == ["long " * 80]
