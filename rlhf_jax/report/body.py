"""The sections of a report, from what a run has written: headline figures, curves, completions, evaluations, times, config."""

import json
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rlhf_jax.observe.lines import Line
from rlhf_jax.observe.progress import format_figure, format_seconds
from rlhf_jax.report import page, plots, read, style, timeline, trade_off
from rlhf_jax.report.read import BEST_OF_N, Run

NUM_PAIRS = 8
MAX_PAIRS = 64
MAX_DURING = 60
KINDS = ("before", "after")


def body(run: Run, drawn: Mapping[str, Figure]) -> list[str]:
    """The sections of the page; `drawn` has the figures by name, those of a stage as `stage_<name>`."""
    figures = {name: page.drawing(style.svg(figure, name), name.replace("_", " ")) for name, figure in drawn.items()}
    others = "".join(f"<h3>{page.text(name[6:])}</h3>{text}" for name, text in figures.items() if name[:6] == "stage_")
    config = "" if run.config is None else page.text_block(json.dumps(run.config, indent=2, sort_keys=True))
    return [
        f"<h1>{page.text(run.title)}</h1>",
        f'<p class="muted">{page.text(_subtitle(run))}</p>',
        page.notice("Not there yet", run.missing),
        _headline(run),
        _section("What training did", figures.get("learning_curves", "")),
        _section("What it cost in KL", figures.get("trade_off", "")),
        _section("Who waited for whom", _timeline(run, figures.get("timeline", ""))),
        _section("Completions before and after", _pairs(run)),
        page.folded("Completions during training", _during(run)),
        _section("Evaluations", _evaluations(run)),
        _section("Time", figures.get("time_per_stage", "")),
        page.folded("All figures of each stage", others),
        page.folded("Resolved config", config),
    ]


def _section(title: str, content: str) -> str:
    return f"<h2>{page.text(title)}</h2>{content}" if content else ""


def _subtitle(run: Run) -> str:
    counts = [(stage, len(read.updates(run.lines, stage))) for stage in read.stages(run.lines)]
    return "updates: " + " · ".join(f"{stage} {count}" for stage, count in counts if count)


def _timeline(run: Run, drawn: str) -> str:
    if not run.spans or run.config is None:
        return drawn
    found = timeline.speed(run.spans, run.config["rlhf"]["loop"] == "asynchronous")
    return drawn + "".join(f"<p>{page.text(sentence)}</p>" for sentence in (timeline.sentences(found) if found else ()))


def _headline(run: Run) -> str:
    base, trained = read.before_and_after(run.lines)
    reward_model = next(reversed(read.evaluations(run.lines, "reward_model")), None)
    seconds = {stage: sum(parts.values()) for stage, parts in read.stage_seconds(run.lines).items()}
    cards = [
        _change("Gold win-rate", base, trained, "win_rate", "against references, held-out prompts, temperature 1"),
        _change("Gold score", base, trained, "gold_mean", "points of the task's judge"),
        _change("KL to the reference", None, trained, "kl", "nats a completion, on fresh samples"),
        _change("Distinct completions", base, trained, "distinct_completions", "share of the evaluation's samples"),
        _change("Reward model", None, reward_model, "heldout_accuracy", "of held-out comparisons ordered as gold does"),
        page.card("Wall time", format_seconds(sum(seconds.values())), f"{len(seconds)} stages") if seconds else "",
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if any(cards) else ""


def _change(title: str, base: Line | None, trained: Line | None, name: str, note: str) -> str:
    """A card "before → after", ± 95 % in its note; only what is known of the two."""
    before, after = ((line or {}).get(name) for line in (base, trained))
    if after is None and before is None:
        return ""
    known = [] if before is None else [f"<i>{format_figure(before)} →</i>"]
    known.append("<i>?</i>" if after is None else format_figure(after))
    stderr = (trained or {}).get(f"{name}_stderr")
    return page.card(title, " ".join(known), note + ("" if stderr is None else f", {_interval(stderr)} (95 %)"))


def _interval(stderr: float) -> str:
    return f"± {plots.INTERVAL * stderr:.2g}"


def _pairs(run: Run) -> str:
    """The last completion "before" and the last "after" of each prompt, side by side."""
    before, after = ({text["ordinal"]: text for text in read.of_kind(run.samples, kind)} for kind in KINDS)
    both = [(before.get(ordinal), after.get(ordinal)) for ordinal in dict.fromkeys([*before, *after])]
    shown, more = both[:NUM_PAIRS], both[NUM_PAIRS:MAX_PAIRS]
    return _pair_table(shown) + page.folded(f"{len(more)} more", _pair_table(more))


def _pair_table(pairs: Sequence[tuple[Line | None, Line | None]]) -> str:
    head = ("prompt", "before", "gold", "reward", "after", "gold", "reward")
    kinds = ("text", "text", "number", "number", "text", "number", "number")
    return page.table(head, [_pair_row(*pair) for pair in pairs], kinds) if pairs else ""


def _pair_row(before: Line | None, after: Line | None) -> list[str]:
    prompt = (before or after or {})["prompt"]
    cells = [page.text(prompt)]
    for sample, other in ((before, None), (after, before)):
        cells += ["<i>none</i>", "", ""] if sample is None else _sample_cells(sample, other)
    return cells


def _sample_cells(sample: Line, before: Line | None = None) -> list[str]:
    ending = "" if sample["finished"] else ' <span class="muted" title="no EOS was sampled">… (cut)</span>'
    scores = [_score(sample[name], None if before is None else before[name]) for name in ("gold", "reward")]
    return [page.text(sample["completion"]) + ending, *scores]


def _score(value: float | None, before: float | None) -> str:
    if value is None:
        return "<i>–</i>"
    change = 0 if before is None else value - before
    kind = "up" if change > 0 else "down" if change < 0 else ""
    return f'<span class="{kind}">{format_figure(value)}</span>'


def _during(run: Run) -> str:
    texts = read.of_kind(run.samples, "during")[-MAX_DURING:]
    rows = [[str(text["update"]), page.text(text["prompt"]), *_sample_cells(text)] for text in texts]
    head = ("update", "prompt", "completion", "gold", "reward")
    return page.table(head, rows, ("number", "text", "text", "number", "number")) if rows else ""


def _evaluations(run: Run) -> str:
    """Each figure before and after training, ± 95 % where its standard error is known; then best-of-n."""
    known = [line for line in read.before_and_after(run.lines) if line is not None]
    names = read.figure_names(known)
    rows = [[page.text(name.replace("_", " ")), *(_evaluated(line, name) for line in known)] for name in names]
    head = ("figure", *(f"{line['of']}, update {line['update']}" for line in known))
    table = page.table(head, rows, ("", *("number" for _ in known))) if rows else ""
    return table + _best_of_n(read.evaluations(run.lines, BEST_OF_N))


def _best_of_n(lines: Sequence[Line]) -> str:
    names = [name for name in read.figure_names(lines) if name not in ("n", "kl")]
    rows = [
        [
            f"{line['n']:g}",
            format_figure(trade_off.best_of_n_kl(line["n"])),
            *(_evaluated(line, name) for name in names),
        ]
        for line in sorted(lines, key=lambda line: line["n"])
    ]
    head = ("best of n", "KL, analytic", *(name.replace("_", " ") for name in names))
    return f"<p></p>{page.table(head, rows, tuple('number' for _ in head))}" if rows else ""


def _evaluated(line: Line, name: str) -> str:
    if name not in line:
        return "<i>–</i>"
    stderr = line.get(f"{name}_stderr")
    return format_figure(line[name]) + ("" if stderr is None else f" {_interval(stderr)}")
