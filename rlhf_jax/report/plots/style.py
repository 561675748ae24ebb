"""The style of figures and their export: PNG on white, or SVG in colours that follow a light or
dark page.

The series' colours are Okabe and Ito's (Color Universal Design, 2008), which colour-blind readers
tell apart; on a dark page each is replaced by a lighter one of the same hue.
"""

import io
import re
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import Formatter, MaxNLocator

from rlhf_jax.records.jsonl import replace

INK, MUTED, GRID, REST = "#22272e", "#5f6875", "#e3e6ea", "#c3c9d1"
HELDOUT, TRAINING, SECOND, THIRD = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
PART_COLORS = (HELDOUT, TRAINING, SECOND, THIRD, "#56b4e9", "#d55e00")
DARK = {  # what each colour is on a dark page
    INK: "#e6e9ee",
    MUTED: "#9aa4b2",
    GRID: "#2f3640",
    REST: "#4a5361",
    HELDOUT: "#4aa8e0",
    TRAINING: "#f0b429",
    SECOND: "#2fc79b",
    THIRD: "#e29cc3",
    "#56b4e9": "#8fd0f5",
    "#d55e00": "#f0803c",
}
RC: dict[Any, Any] = {"svg.hashsalt": "rlhf_jax", "svg.fonttype": "path", "path.simplify": True}


def css_variables(dark: bool) -> str:
    """`--color-<hex>: <hex>;` for every colour, in the light or the dark variant."""
    return " ".join(f"--color-{light[1:]}: {DARK[light] if dark else light};" for light in DARK)


@dataclass(frozen=True)
class Picture:
    """A pair of axes that is drawn alone on a page, or beside others in a file. Sizes are in
    inches.

    `note` is one line for its reader. `left` and `top` are margins: of the labels, and of title and
    legend. A `wide` picture takes a row of the page. `narrow` takes its place on a narrow page, on
    which its letters would be too small.
    """

    name: str
    note: str
    paint: Callable[[Axes], None]
    width: float = 4.0
    height: float = 2.75
    left: float = 0.78
    top: float = 0.58
    wide: bool = False
    narrow: "Picture | None" = None

    @property
    def axes_width(self) -> float:
        """Inches between the margins."""
        return self.width - self.left - RIGHT


RIGHT, BOTTOM, LEGEND_FROM = 0.16, 0.5, 0.2
LETTER = 0.0088
"""Width of a letter of a bold title in inches per point of its size, on average and a bit more."""
TITLE_SIZES = 5.0, 10.0
TITLE_HEIGHT = 0.3
AT_THE_TOP = 1.0
"""Height of a title above its axes, in their units. Where none is given, matplotlib measures all
labels of the axes for it, in a sixth of the time of a report.
"""
PICTURES: MutableMapping[Axes, Picture] = WeakKeyDictionary()
"""The picture of each pair of axes."""


def sheet(pictures: Sequence[Picture], columns: int = 1) -> Figure:
    """A figure of pictures in rows of `columns`, each at its own size: margins are fixed, and not
    measured.
    """
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(sum(picture.width for picture in row) for row in rows)
    height = sum(max(picture.height for picture in row) for row in rows)
    figure, y = Figure(figsize=(width, height)), height
    for row in rows:
        y -= max(picture.height for picture in row)
        x = 0.0
        for picture in row:
            inner = picture.axes_width, picture.height - picture.top - BOTTOM
            rectangle = (
                (x + picture.left) / width,
                (y + BOTTOM) / height,
                inner[0] / width,
                inner[1] / height,
            )
            ax = figure.add_axes(rectangle)
            PICTURES[ax] = picture
            picture.paint(ax)
            x += picture.width
    return figure


class Numbers(Formatter):
    """Tick labels with as many decimals as neighbours need to differ, short enough for a margin,
    with true minus signs.
    """

    def __init__(self, share: bool = False) -> None:
        self.share = share

    def __call__(self, x: float, pos: int | None = None) -> str:
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        scaled = [100 * value if self.share else value for value in values]
        largest = max(map(abs, scaled), default=0.0)
        decimals = next(
            (
                d
                for d in range(5)
                if all(abs(round(v, d) - v) <= 1e-9 + 1e-6 * largest for v in scaled)
            ),
            5,
        )
        if largest >= 1e5 or (decimals == 5 and largest < 1e-3):
            texts = [
                f"{value:.2g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
                for value in scaled
            ]
        else:
            texts = [f"{value:.{min(decimals, 4)}f}" for value in scaled]
        return [text.replace("-", "−") + " %" * self.share for text in texts]


def plain_axes(ax: Axes, title: str, x_label: str, y_label: str, share: bool = False) -> None:
    """The axes of a picture: room for a legend between title and axes, and labels at fixed places."""
    axes(ax, title, x_label, y_label)
    points = 72 * (PICTURES[ax].top - TITLE_HEIGHT)
    ax.set_title(
        title,
        loc="left",
        fontsize=_title_size(title, PICTURES[ax].width - LEGEND_FROM),
        fontweight="bold",
        color=INK,
        pad=points,
        y=AT_THE_TOP,
        x=_from_left(ax, LEGEND_FROM),
    )
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(Numbers(share))
    ax.yaxis.set_label_coords(_from_left(ax, 0.2), 0.5)


def _title_size(title: str, width: float) -> float:
    """The size in points at which a title is about so wide, in inches: smaller for a long one."""
    least, most = TITLE_SIZES
    return min(most, max(least, width / (LETTER * max(len(title), 1))))


def legend(ax: Axes, columns: int | None = None, handles: Sequence[Patch] | None = None) -> None:
    """A legend between title and axes, where no curve passes."""
    if handles is None:
        shown, labels = ax.get_legend_handles_labels()
    else:
        shown, labels = handles, [str(handle.get_label()) for handle in handles]
    if not shown:
        return
    ax.legend(
        shown, labels, ncols=columns or len(shown), fontsize=7.5, frameon=False, loc="lower left", labelcolor=INK,
        bbox_to_anchor=(_from_left(ax, LEGEND_FROM), 1.0), borderpad=0.2, borderaxespad=0.1,
        handlelength=1.5, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip


def _from_left(ax: Axes, inches: float) -> float:
    """The place, in the axes' own coordinates, that is so far from the left edge of the picture
    that they are in.
    """
    figure = ax.figure
    width = ax.get_position().width * figure.get_size_inches()[0]  # pyright: ignore[reportAttributeAccessIssue]
    return (inches - PICTURES[ax].left) / width


def panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure 12 inches wide with `count` axes in rows of `columns`, each row `height` inches
    high.

    The margins are fixed: a layout that measures its texts takes as long again as drawing them.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(12, height * rows))
    total = height * rows
    figure.subplots_adjust(
        left=0.62 / 12,
        right=1 - 0.12 / 12,
        bottom=0.46 / total,
        top=1 - 0.32 / total,
        wspace=0.24 / 4 * columns,
    )
    figure.subplots_adjust(hspace=0.78 / (height - 0.78) if rows > 1 else 0)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def axes(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, labels and a quiet grid."""
    ax.set_facecolor("none")
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, y=AT_THE_TOP)
    ax.set_xlabel(x_label, fontsize=8.5, color=MUTED)
    ax.set_ylabel(y_label, fontsize=8.5, color=MUTED)
    ax.tick_params(labelsize=8, colors=MUTED, length=0)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(GRID)


def write_png(figure: Figure, path: Path) -> None:
    """On white, 150 dots an inch, by atomic rename. Raises OSError that names the file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    replace(path, buffer.getvalue())


def svg(figure: Figure, name: str) -> str:
    """An `<svg>` element to be put into a page that defines `css_variables`; the same figure gives
    the same text.

    Its ids begin with `name`, so that several of them can stand in one page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{re.sub(r'[^A-Za-z0-9]', '-', name)}-", text)
    for color in DARK:
        text = text.replace(color, f"var(--color-{color[1:]})")
    return text
