"""The sections of a report: what the run is, headline figures, curves, completions, evaluations,
times, config.
"""

import json
from collections.abc import Mapping, Sequence

from rlhf_jax.records.jsonl import Line
from rlhf_jax.records.progress import format_seconds
from rlhf_jax.report import identity, notices, page, read, texts
from rlhf_jax.report import units as units_of
from rlhf_jax.report.formats import alike, half_width, with_interval
from rlhf_jax.report.plots import style, timeline
from rlhf_jax.report.plots.style import Picture
from rlhf_jax.report.read import Run
from rlhf_jax.report.units import Units

LEAST_WIDTHS = {"learning_curves": "320px", "trade_off": "460px", "timeline": "320px"}
LEAST_WIDTH = "300px"  # of the pictures of a stage


def body(run: Run, drawn: Mapping[str, Sequence[Picture]]) -> list[str]:
    """The sections of the page; `drawn` has the pictures by name, those of a stage as
    `stage_<name>`.
    """
    units = units_of.resolve(run.config, run.lines, run.samples)
    figures = {name: _pictures(name, pictures) for name, pictures in drawn.items()}
    others = "".join(
        f"<h3>{page.text(name[6:])}</h3>{text}"
        for name, text in figures.items()
        if name[:6] == "stage_"
    )
    config = (
        ""
        if run.config is None
        else page.text_block(json.dumps(run.config, indent=2, sort_keys=True))
    )
    sections = {
        "What training did": _with_bands(figures.get("learning_curves", ""), units),
        "What it cost in KL": figures.get("trade_off", ""),
        "Who waited for whom": _timeline(run, figures.get("timeline", "")),
        "Completions before and after": texts.pairs(run),
        "Evaluations": texts.evaluations(run, units),
        "Time": figures.get("time_per_stage", ""),
    }
    summary, during = texts.during(run)
    folded = {texts.DURING: during, "All figures of each stage": others}
    folded |= {"Starts": identity.starts(run), "Resolved config": config}
    titles = [title for title, content in (sections | folded).items() if content]
    return [
        f"<h1>{page.text(identity.name(run))}</h1>",
        page.facts(identity.head(run), "head"),
        page.contents(titles),
        page.notice("Not there yet", run.missing),
        page.notice("Notices", [*read.notices(run.lines), *notices.find(run.lines, run.config)]),
        headline(run, units),
        page.facts(identity.facts(run, units)),
        *(_section(title, content) for title, content in sections.items()),
        *(
            page.folded(summary if title == texts.DURING else title, content, title)
            for title, content in folded.items()
        ),
        f'<p class="muted">{page.text(identity.written_by())}</p>',
    ]


def _section(title: str, content: str) -> str:
    return f'<h2 id="{page.anchor(title)}">{page.text(title)}</h2>{content}' if content else ""


def _pictures(name: str, pictures: Sequence[Picture]) -> str:
    """A file's pictures as figures of the page."""
    drawings = [
        page.drawing(
            style.svg(style.sheet([picture]), f"{name} {index}"), picture.name, picture.note, picture.wide
        )
        for index, picture in enumerate(pictures)
    ]  # fmt: skip
    if len(drawings) == 1 and pictures[0].wide:
        return drawings[0]
    return page.pictures(drawings, LEAST_WIDTHS.get(name, LEAST_WIDTH))


def _with_bands(figures: str, units: Units) -> str:
    """Learning curves with a line about their bands."""
    legend = (
        f"Points are evaluations on held-out prompts; bands are {units.interval} to either side."
    )
    if units.interval == "95 %":
        legend = "Points are evaluations on held-out prompts; bands hold the mean over all prompts in 95 % of cases."
    return f'<p class="muted">{page.text(legend)}</p>{figures}' if figures else ""


def _timeline(run: Run, drawn: str) -> str:
    if not run.spans:
        return drawn
    sentences = [timeline.left_out(run.spans)]
    loop = units_of.value(run.config, "rlhf.loop")
    speed = timeline.speed(run.spans, loop == "asynchronous") if loop else None
    if speed:
        sentences = [
            *timeline.sentences(speed, units_of.value(run.config, "algorithm.name") or ""),
            *sentences,
        ]
    return "".join(f"<p>{page.prose(sentence)}</p>" for sentence in sentences if sentence) + drawn


def headline(run: Run, units: Units) -> str:
    """Cards of the figures that matter, before and after training."""
    base, trained = read.before_and_after(run.lines)
    reward_model = next(reversed(read.evaluations(run.lines, "reward_model")), None)
    against = "against references, held-out prompts, temperature 1"
    cards = [
        _change("Gold win-rate", base, trained, "win_rate", against, units),
        _change(units.gold.title, base, trained, "gold_mean", units.gold.unit, units),
        _change(units.learned.title, base, trained, "reward_mean", units.learned.unit, units),
        _change(
            "KL to the SFT policy",
            None,
            trained,
            "kl",
            "nats per completion, on fresh samples",
            units,
        ),
        _change(
            "Distinct completions",
            base,
            trained,
            "distinct_completions",
            "share of 64 samples",
            units,
        ),
        _change(
            "Reward model",
            None,
            reward_model,
            "heldout_accuracy",
            "of held-out comparisons ordered as labelled",
            units,
        ),
        _change(
            "Implicit reward's accuracy",
            None,
            trained,
            "heldout_accuracy",
            "of held-out comparisons ordered as labelled",
            units,
        ),
        _wall_time(run),
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if any(cards) else ""


def _wall_time(run: Run) -> str:
    seconds = read.stage_seconds(run.lines)
    if not seconds:
        return ""
    total = sum(sum(parts.values()) for parts in seconds.values())
    to_start = sum(
        parts.get("start", 0.0) + parts.get("compile", 0.0) for parts in seconds.values()
    )
    note = f"{len(seconds)} stage{'s' * (len(seconds) > 1)}"
    note += f", {format_seconds(to_start)} of it to start and compile" if to_start else ""
    return page.card("Wall time", format_seconds(total), note)


def _change(
    title: str, base: Line | None, trained: Line | None, name: str, note: str, units: Units
) -> str:
    """A card "before → after" with the interval of the latter; only what is known of the two."""
    before, after = ((line or {}).get(name) for line in (base, trained))
    if after is None and before is None:
        return ""
    stderr = (trained or {}).get(f"{name}_stderr") if after is not None else None
    shown = alike([value for value in (before, after) if value is not None], stderr)
    first = "" if before is None else f"<i>{shown[0]} →</i> "
    interval = with_interval(0.0, stderr).partition(" ± ")[2] if half_width(stderr) else ""
    caption = f"{note}, ± {interval} ({units.interval})" if interval else note
    return page.card(title, first + ("<i>?</i>" if after is None else shown[-1]), caption)
