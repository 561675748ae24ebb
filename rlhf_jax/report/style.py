"""How figures look and how they leave: as PNG on white, or as SVG in colours that follow a light or dark page.

The series' colours are Okabe and Ito's (Color Universal Design, 2008), which colour-blind readers tell apart; on a dark
page each is replaced by a lighter one of the same hue.
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.observe.lines import replace

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


def panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure 12 inches wide with `count` axes in rows of `columns`, each row `height` inches high.

    The margins are fixed: a layout that measures its texts takes as long again as drawing them.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(12, height * rows))
    total = height * rows
    figure.subplots_adjust(
        left=0.62 / 12, right=1 - 0.12 / 12, bottom=0.46 / total, top=1 - 0.32 / total, wspace=0.24 / 4 * columns
    )
    figure.subplots_adjust(hspace=0.78 / (height - 0.78) if rows > 1 else 0)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def axes(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, labels and a quiet grid."""
    ax.set_facecolor("none")
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
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
    """An `<svg>` element to be put into a page that defines `css_variables`; the same figure gives the same text.

    Its ids begin with `name`, so that several of them can stand in one page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{re.sub(r'[^A-Za-z0-9]', '-', name)}-", text)
    for color in DARK:
        text = text.replace(color, f"var(--color-{color[1:]})")
    return text
