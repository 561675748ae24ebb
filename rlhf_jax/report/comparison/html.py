"""Writes the page that compares runs: one file, nothing fetched, no script."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf_jax.records import jsonl
from rlhf_jax.records.progress import format_seconds
from rlhf_jax.report import glossary, identity, read, rendering
from rlhf_jax.report.comparison import completions, figures, runs, unchanged
from rlhf_jax.report.comparison.runs import Comparison, Group
from rlhf_jax.report.elements import Drawings
from rlhf_jax.report.formats import number
from rlhf_jax.report.plots import drawings, overlaid
from rlhf_jax.report.plots.overlaid import Axis
from rlhf_jax.report.plots.style import Picture
from rlhf_jax.report.units import EVALUATED_AT

TEMPLATE = "comparison/page.html.jinja"
FILE = "comparison.html"
SHOWN, MOST_SHOWN = 6, 48
ACROSS = {
    "update": ("Against updates", "update"),
    "seconds": ("Against seconds", "seconds of the stage that trains the policy"),
    "kl": ("Against KL", "KL to the SFT policy, nats"),
}
SHARES = ("win_rate", "finished", "distinct_completions")
UNITS = {
    "win_rate": "share of pairs",
    "kl": "nats per completion",
    "entropy": "nats per token",
    "completion_length": "tokens",
    "finished": "share of samples",
    "distinct_completions": "share of samples",
}
TITLES = {
    "win_rate": "Win-rate against references (gold)",
    "kl": "KL to the SFT policy",
    "entropy": "Entropy",
    "completion_length": "Completion length",
}


def write(
    given: Sequence[str],
    path: str | os.PathLike[str],
    say: Callable[[str], object] | None = None,
) -> Path:
    """Writes the page of a comparison by an atomic rename; returns its path.

    Args:
      given: run directories, and patterns of them.
      path: of the page.
      say: takes each sentence about runs with the same numbers, which the page has too.

    Raises as `runs.compare`, and OSError.
    """
    comparison = runs.compare(given)
    same = unchanged.sentences(comparison)
    comparison = replace(comparison, notices=(*same, *comparison.notices))
    jsonl.replace(Path(path), render(comparison).encode())
    if say is not None:
        for sentence in same:
            say(f"note: {sentence}")
    return Path(path)


def render(comparison: Comparison) -> str:
    """The page of a comparison."""
    headline, reasons = figures.verdict(comparison)
    groups = figures.ranked(comparison)
    samples = completions.side_by_side(comparison)
    position = {group.letter: index for index, group in enumerate(comparison.groups)}
    rows = [(prompt, samples.before.get(prompt), texts) for prompt, texts in samples.after.items()]
    return rendering.page(
        TEMPLATE,
        colors=Markup(_colors(comparison)),
        title=f"Comparison of {len(comparison.runs)} runs",
        comparison=comparison,
        headline=headline,
        reasons=reasons,
        groups=groups,
        ranked_by=figures.ranked_by(comparison),
        table=_table(comparison, groups),
        order=[position[group.letter] for group in groups],
        facts=[_facts(group) for group in groups],
        curves=_curves(comparison),
        samples=samples,
        shown=rows[:SHOWN],
        folded=rows[SHOWN:MOST_SHOWN],
        written_by=identity.written_by(),
        temperature=f"{EVALUATED_AT:g}",
    )


def _colors(comparison: Comparison) -> str:
    """The rules that give a group's letter the colour and the line of its curves."""
    styles = {"-": "solid", "--": "dashed", ":": "dotted"}
    return "\n".join(
        f".key-{group.letter} {{ border-color: var(--color-{overlaid.color(index)[1:]}); "
        f"border-bottom-style: {styles[overlaid.line(index)]}; }}"
        for index, group in enumerate(comparison.groups)
    )


def _table(comparison: Comparison, groups: Sequence[Group]) -> dict[str, Any]:
    """Titles, notes and cells of the final figures: a row for each group, the best one first."""
    names, ranked_by = figures.names(comparison), figures.ranked_by(comparison)
    kl = figures.common_kl(comparison)
    columns: list[tuple[str, list[str]]] = []
    for name in names:
        title = glossary.title(name, comparison.units)
        columns.append((title, [figures.last(group, name).text for group in groups]))
        if name == ranked_by:
            behind = [figures.difference(group, groups[0], name).signed for group in groups[1:]]
            columns.append((f"minus {groups[0].letter}", ["–", *behind]))
            at_kl = [figures.at_common_kl(group, kl, name) for group in groups]
            if not all(math.isnan(value.mean) for value in at_kl):
                columns.append((f"at KL {number(kl)}", [value.text for value in at_kl]))
    facts = [_facts(group) for group in groups]
    columns += [
        (name.capitalize(), [fact[name] for fact in facts]) for name in ("seeds", "updates")
    ]
    columns.append(
        ("Time of training", [format_seconds(figures.seconds(group)) for group in groups])
    )
    return {
        "head": [title for title, _ in columns],
        "rows": list(zip(*(cells for _, cells in columns), strict=True)),
        "notes": [
            (glossary.title(name, comparison.units), glossary.note(name))
            for name in names
            if glossary.note(name)
        ],
    }


def _facts(group: Group) -> dict[str, Any]:
    """The seeds, updates and directories of a group."""
    done = [len(read.updates(run.run.lines, read.TRAINED)) for run in group.runs]
    return {
        "seeds": ", ".join(map(str, group.seeds)),
        "updates": str(done[0]) if len(set(done)) == 1 else f"{min(done)} to {max(done)}",
        "directories": [str(run.run.directory) for run in group.runs],
    }


def _curves(comparison: Comparison) -> list[tuple[str, Drawings]]:
    """Sections of pictures: a title and its pictures."""
    sections = []
    for across, (title, x_label) in ACROSS.items():
        pictures = [
            picture
            for name in figures.names(comparison)
            if name != across
            and (across == "update" or name in figures.RANKED)
            and (picture := _picture(comparison, name, across, x_label)) is not None
        ]
        if pictures:
            described = [
                replace(picture, name=f"{picture.name}, {title.lower()}") for picture in pictures
            ]
            sections.append((title, drawings.drawings(described, across, "320px")))
    return sections


def _picture(comparison: Comparison, name: str, across: str, x_label: str) -> Picture | None:
    curves = {group.letter: figures.mean_curve(group, name, across) for group in comparison.groups}
    units = comparison.units
    quantity = {
        "gold_mean": units.gold,
        "reward_mean": units.learned,
        "training_reward": replace(units.reward, title=glossary.TITLES["training_reward"]),
    }.get(name)
    title = quantity.title if quantity else TITLES.get(name, glossary.title(name, units))
    unit = quantity.unit if quantity else UNITS[name]
    share = quantity.share if quantity else name in SHARES
    return overlaid.picture(Axis(title, x_label, unit, share), glossary.note(name), curves)
