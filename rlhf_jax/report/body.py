"""The content of a report as data: headline figures, curves, completions, evaluations, times and
config, which `templates/run.html.jinja` sets.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.progress import format_seconds
from rlhf_jax.report import glossary, identity, notices, read, texts
from rlhf_jax.report import units as units_of
from rlhf_jax.report.elements import Block, Card, Element, Folded, Heading, Note, Section, Table
from rlhf_jax.report.formats import alike, half_width, with_interval
from rlhf_jax.report.plots import drawings, timeline, tokens
from rlhf_jax.report.plots.style import Picture
from rlhf_jax.report.read import Run
from rlhf_jax.report.units import Units

LEAST_WIDTHS = {"learning_curves": "320px", "trade_off": "460px", "timeline": "320px"}
LEAST_WIDTH = "300px"  # of the pictures of a stage
OF_STAGE = "stage_"
SPEED = (
    "Without compiling, evaluations and checkpoints. Of RLHF, an update has the speed of the round before "
    "its own; parts of the sampler and of the trainer overlap in the asynchronous loop."
)
FIRST_PARTS, REST = ("start", "compile", "evaluate"), "other"


def values(run: Run, drawn: Mapping[str, Sequence[Picture]]) -> dict[str, Any]:
    """The values that the template names.

    Args:
      run: that is reported.
      drawn: pictures by name, those of a stage as `stage_<name>`.
    """
    units = units_of.resolve(run.config, run.lines, run.samples)
    sections = _sections(run, drawn, units)
    return {
        "title": run.title,
        "name": identity.name(run),
        "head": identity.head(run),
        "contents": [section.title for section in sections],
        "missing": run.missing,
        "notices": [*read.notices(run.lines), *notices.find(run.lines, run.config)],
        "cards": headline(run, units),
        "facts": identity.facts(run, units),
        "files": identity.files(run.directory),
        "sections": sections,
        "written_by": identity.written_by(),
    }


def _sections(
    run: Run, drawn: Mapping[str, Sequence[Picture]], units: Units
) -> list[Section | Folded]:
    """The sections that the run has something for."""
    figures: dict[str, list[Element]] = {
        name: [drawings.drawings(pictures, name, LEAST_WIDTHS.get(name, LEAST_WIDTH))]
        for name, pictures in drawn.items()
    }
    curves = figures.get("learning_curves", [])
    parts: dict[str, Sequence[Element]] = {
        "What training did": [*_bands(units), *curves] if curves else [],
        "What it cost in KL": figures.get("trade_off", []),
        "Who waited for whom": [*_waits(run), *figures.get("timeline", [])],
        "How old the tokens were": [*_ages(run), *figures.get("tokens", [])],
        "Completions before and after": texts.pairs(run),
        "Evaluations": texts.evaluations(run, units),
        "Time": [*_times(run), *figures.get("time_per_stage", [])],
        "Speed": _speed(run),
    }
    summary, during = texts.during(run)
    starts = identity.starts(run)
    folded: dict[str, Sequence[Element]] = {
        texts.DURING: during,
        "All figures of each stage": [
            part
            for name, drawing in figures.items()
            if name.startswith(OF_STAGE)
            for part in (Heading(name.removeprefix(OF_STAGE)), *drawing)
        ],
        "Starts": [starts] if starts else [],
        "Resolved config": _config(run.config),
    }
    return [
        *(Section(title, content) for title, content in parts.items() if content),
        *(
            Folded(summary if title == texts.DURING else title, content, title)
            for title, content in folded.items()
            if content
        ),
    ]


def _config(config: Mapping[str, Any] | None) -> list[Element]:
    if config is None:
        return []
    return [Block(json.dumps(config, indent=2, sort_keys=True).split("\n"))]


def _bands(units: Units) -> list[Element]:
    """A line about the bands of learning curves."""
    if units.interval == "95 %":
        bands = "bands hold the mean over all prompts in 95 % of cases."
    else:
        bands = f"bands are {units.interval} to either side."
    return [Note(f"Points are evaluations on held-out prompts; {bands}")]


def _waits(run: Run) -> list[Element]:
    """Sentences about the time of a round."""
    if not run.spans:
        return []
    sentences = [timeline.left_out(run.spans)]
    loop = units_of.value(run.config, "rlhf.loop")
    speed = timeline.speed(run.spans, loop == "asynchronous") if loop else None
    if speed:
        algorithm = units_of.value(run.config, "algorithm.name") or ""
        sentences = [*timeline.sentences(speed, algorithm), *sentences]
    return list(filter(None, sentences))


def _ages(run: Run) -> list[Element]:
    """Sentences and a table about the ages of tokens, of a run whose rows have several versions."""
    trained = read.updates(run.lines, read.TRAINED)
    if not read.has_mixed_rows(trained):
        return []
    found = tokens.shares(run.tokens_by_version)
    table = Table(("updates old", "share of the tokens"), ("number", "number"), found)
    return [*tokens.sentences(trained), *([table] if found else [])]


def _times(run: Run) -> list[Element]:
    """The seconds of each stage by part, compiling apart from training."""
    seconds = read.stage_seconds(run.lines)
    if not seconds:
        return []
    found = {name for parts in seconds.values() for name in parts}
    names = [name for name in FIRST_PARTS if name in found]
    names += sorted(found - {*FIRST_PARTS, REST}) + [REST] * (REST in found)
    head = ("stage", "wall time", *map(glossary.part, names))
    rows = [
        (
            stage.replace("_", " "),
            format_seconds(sum(parts.values())),
            *(format_seconds(parts[name]) if name in parts else "" for name in names),
        )
        for stage, parts in seconds.items()
    ]
    return [Table(head, ("", *("number" for _ in head[1:])), rows, stack=True)]


def _speed(run: Run) -> list[Element]:
    """Speed of each stage that trains: medians over its updates, and how far they spread."""
    rows = [
        (
            stage.replace("_", " "),
            glossary.speed(name),
            *(
                glossary.speed_value(name, value)
                for value in (spread.median, spread.low, spread.high)
            ),
            str(spread.count),
        )
        for stage, spreads in read.speeds(run.lines).items()
        for name, spread in spreads.items()
    ]
    if not rows:
        return []
    head = ("stage", "figure", "median", "10th percentile", "90th percentile", "updates")
    return [Note(SPEED), Table(head, ("", "", *("number" for _ in head[2:])), rows, stack=True)]


def headline(run: Run, units: Units) -> list[Card]:
    """Cards of the figures that matter, before and after training; none of a figure that the run
    does not have.
    """
    base, trained = read.before_and_after(run.lines)
    reward_model = next(reversed(read.evaluations(run.lines, "reward_model")), None)
    ordered = "of held-out comparisons ordered as labelled"
    kl = "nats per completion, on fresh samples"
    cards = (
        ("Gold win-rate", base, trained, "win_rate", "against references, held-out prompts, temperature 1"),
        (units.gold.title, base, trained, "gold_mean", units.gold.unit),
        (units.learned.title, base, trained, "reward_mean", units.learned.unit),
        ("KL to the SFT policy", None, trained, "kl", kl),
        ("Distinct completions", base, trained, "distinct_completions", "share of 64 samples"),
        ("Reward model", None, reward_model, "heldout_accuracy", ordered),
        ("Implicit reward's accuracy", None, trained, "heldout_accuracy", ordered),
    )  # fmt: skip
    known = [_change(*card, units) for card in cards]
    return [card for card in [*known, _wall_time(run)] if card is not None]


def _wall_time(run: Run) -> Card | None:
    seconds = read.stage_seconds(run.lines)
    if not seconds:
        return None
    total = sum(sum(parts.values()) for parts in seconds.values())
    compiling, to_start = (
        sum(parts.get(name, 0.0) for parts in seconds.values()) for name in ("compile", "start")
    )
    note = f"{len(seconds)} stage{'s' * (len(seconds) > 1)}"
    if compiling + to_start:
        what = "start and compile" if to_start else "compile"
        note += f", {format_seconds(compiling + to_start)} of it to {what}"
    return Card("Wall time", format_seconds(total), note)


def _change(
    title: str, base: Line | None, trained: Line | None, name: str, note: str, units: Units
) -> Card | None:
    """A card "before → after" with the interval of the latter; only what is known of the two."""
    before, after = ((line or {}).get(name) for line in (base, trained))
    if after is None and before is None:
        return None
    stderr = (trained or {}).get(f"{name}_stderr") if after is not None else None
    shown = alike([value for value in (before, after) if value is not None], stderr)
    interval = with_interval(0.0, stderr).partition(" ± ")[2] if half_width(stderr) else ""
    caption = f"{note}, ± {interval} ({units.interval})" if interval else note
    return Card(
        title,
        "" if after is None else shown[-1],
        caption,
        before="" if before is None else shown[0],
    )
