"""Draws the versions and ages of a round's tokens, of a run whose rows were being written when the
weights changed, and says in words how old the tokens were.

A round's tokens have the age of its first update here: in update j of the round they are j older.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report.formats import number, percent
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import Picture

MAX_COLUMNS = 40
"""Columns of the histograms; of a longer run, each is of several rounds that follow one another."""
SHOWN_ROUNDS, FAINTEST = 24, 0.12
"""Rounds of the schedule, and the opacity of a version that hardly any token has."""
ONE_ROW = 4
"""Ages that a row of the legend has room for."""
Tokens = Mapping[int, Mapping[int, int]]
"""First update of a round -> version -> tokens."""


def pictures(tokens: Tokens) -> list[Picture]:
    """The histograms of ages and the schedule of versions; none without tokens."""
    if not tokens:
        return []
    ages = Picture(
        "Age of the tokens by round",
        "Share of a round's tokens by age in its first update; a round of one version is one bar.",
        partial(_draw_ages, tokens),
        top=0.74 if len(_binned(tokens, {})) > ONE_ROW else 0.58,
    )
    title = "Versions of the tokens by round"
    if len(tokens) > SHOWN_ROUNDS:
        title += f", last {SHOWN_ROUNDS}"
    versions = Picture(
        title,
        "A column has the versions of a round's tokens; the line is the version that the round's "
        "first update trains.",
        partial(_draw_versions, tokens, title),
    )
    return [ages, versions]


def sentences(trained: Sequence[Line]) -> list[str]:
    """Two sentences about the ages of tokens over a run and its mixed rows; none where every line
    lacks these figures.

    Args:
      trained: lines of the updates.
    """
    names = ("age_mean", "age_p95", "age_max", "mixed_share")
    found = [line for line in trained if all(name in line for name in names)]
    if not found:
        return []
    mean = {name: sum(line[name] for line in found) / len(found) for name in names}
    return [
        f"Weights changed while rows were written: {percent(mean['mixed_share'])} of the rows have "
        "tokens of more than one version.",
        f"A token was {number(mean['age_mean'])} updates old on average when it was trained on, and "
        f"{number(max(line['age_max'] for line in found))} at most. In an update, 95 % of the tokens "
        f"were at most {number(mean['age_p95'])} updates old on average.",
    ]


def shares(tokens: Tokens) -> list[tuple[str, str]]:
    """Rows of a table: ages in a round's first update, and the share of the run's tokens."""
    by_age = _by_age(tokens, list(tokens))
    total = sum(by_age.values())
    return [(text, percent(count / total)) for text, count in _binned(tokens, by_age).items()]


def _by_age(tokens: Tokens, updates: Sequence[int]) -> dict[int, int]:
    """The tokens of some rounds by age, ascending."""
    found: dict[int, int] = {}
    for update in updates:
        for version, count in tokens[update].items():
            found[update - version] = found.get(update - version, 0) + count
    return dict(sorted(found.items()))


def _binned(tokens: Tokens, by_age: Mapping[int, int]) -> dict[str, int]:
    """The tokens by bins of age, all that the run has: an age each, or where there are more than
    colours, as many ages to a bin as needed.
    """
    ages = list(_by_age(tokens, list(tokens)))
    size = -(-len(ages) // len(style.PART_COLORS))
    bins = [ages[start : start + size] for start in range(0, len(ages), size)]
    return {
        f"{members[0]}" if len(members) == 1 else f"{members[0]} to {members[-1]}": sum(
            by_age.get(age, 0) for age in members
        )
        for members in bins
    }


def _draw_ages(tokens: Tokens, ax: Axes) -> None:
    style.plain_axes(ax, "Age of the tokens by round", "update", "tokens", share=True)
    updates = sorted(tokens)
    size = -(-len(updates) // MAX_COLUMNS)
    columns = [updates[start : start + size] for start in range(0, len(updates), size)]
    counts = [_binned(tokens, _by_age(tokens, column)) for column in columns]
    # A column reaches to the next one's first update; the last is as wide as the one before.
    edges = [column[0] for column in columns]
    steps = [*np.diff(edges).tolist()] or [1]
    widths = [*steps[: len(edges) - 1], steps[-1]]
    bottom = np.zeros(len(columns))
    for text, color in zip(counts[0], style.PART_COLORS, strict=False):
        height = np.array([count[text] / sum(count.values()) for count in counts])
        ax.bar(
            edges, height, bottom=bottom, width=widths, align="edge", color=color,
            edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        bottom += height
    ax.set_ylim(0, 1.08)  # so that the label of 100 % is below the legend
    ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    ax.set_xlim(edges[0], edges[-1] + widths[-1])
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.grid(visible=False, axis="x")
    handles = [
        Patch(color=color, label=f"{text} old" if place == 0 else text)
        for place, (text, color) in enumerate(zip(counts[0], style.PART_COLORS, strict=False))
    ]
    style.legend(ax, columns=3 if len(handles) > ONE_ROW else None, handles=handles)


def _draw_versions(tokens: Tokens, title: str, ax: Axes) -> None:
    style.plain_axes(ax, title, "update", "version")
    updates = sorted(tokens)[-SHOWN_ROUNDS:]
    cells = [
        (update, version, count / sum(tokens[update].values()))
        for update in updates
        for version, count in tokens[update].items()
    ]
    x, y, share = (list(column) for column in zip(*cells, strict=True))
    size = (
        int(np.diff(updates).min()) if len(updates) > 1 else 1
    )  # updates a round: versions are its multiples
    faces = [to_rgba(style.HELDOUT, FAINTEST + (1 - FAINTEST) * each) for each in share]
    bottom = np.array(y) - size / 2
    ax.bar(x, [size] * len(x), bottom=bottom, width=size, color=faces, linewidth=0)
    trained = [*updates, updates[-1] + size]
    ax.step(np.array(trained) - size / 2, trained, where="post", color=style.MUTED, linewidth=1.0)
    ax.set_xlim(updates[0] - size / 2, updates[-1] + size / 2)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    drawn = Patch(color=style.HELDOUT, label="tokens, darker: more of the round")
    style.legend(ax, handles=[drawn, Patch(color=style.MUTED, label="trained")])
