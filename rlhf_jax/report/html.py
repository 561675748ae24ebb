"""Writes `report.html` of a run directory, and `plots/*.png`: what a person opens to see what the run did.

The page stands alone: figures are inside it, nothing is fetched, no script runs. Headline figures come first, then
curves, completions before and after, times, and the resolved config. A run that is not finished says what is missing.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rlhf_jax.observe.lines import Line, replace
from rlhf_jax.observe.progress import format_figure, format_seconds
from rlhf_jax.report import page, plots, read, style, trade_off
from rlhf_jax.report.read import BASE, BEST_OF_N, TRAINED, Run

FILE = "report.html"
MAX_PAIRS = 24
MAX_DURING = 60


def write_report(directory: str | os.PathLike[str]) -> Path:
    """Writes `report.html` and `plots/*.png` by atomic renames; returns the path of the page.

    Raises FileNotFoundError where there is no run, ValueError that names file and line for a broken file, OSError.
    """
    run = read.read_run(Path(directory))
    drawn = {name: figure for name, draw in _drawings(run).items() if (figure := draw(run.lines)) is not None}
    (run.directory / "plots").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        style.write_png(figure, run.directory / "plots" / f"{name}.png")
    path = run.directory / FILE
    replace(path, page.page(_title(run), _body(run, drawn)).encode())
    return path


def _title(run: Run) -> str:
    return run.directory.resolve().name


def _drawings(run: Run) -> dict[str, Callable[[Sequence[Line]], Figure | None]]:
    of_stages = {
        f"stage_{stage}": lambda lines, stage=stage: plots.stage_curves(lines, stage)
        for stage in read.stages(run.lines)
    }
    return {
        "learning_curves": plots.learning_curves,
        "trade_off": trade_off.trade_off,
        "time_per_stage": plots.time_per_stage,
    } | of_stages


def _body(run: Run, drawn: Mapping[str, Figure]) -> list[str]:
    figures = {name: page.drawing(style.svg(figure, name), name.replace("_", " ")) for name, figure in drawn.items()}
    others = "".join(f"<h3>{page.text(name[6:])}</h3>{text}" for name, text in figures.items() if name[:6] == "stage_")
    config = "" if run.config is None else page.text_block(json.dumps(run.config, indent=2, sort_keys=True))
    return [
        f"<h1>{page.text(_title(run))}</h1>",
        f'<p class="muted">{page.text(_subtitle(run))}</p>',
        page.notice("Not there yet", run.missing),
        _headline(run),
        _section("What training did", figures.get("learning_curves", "")),
        _section("What it cost in KL", figures.get("trade_off", "")),
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
    counts = [f"{stage}: {len(read.updates(run.lines, stage))} updates" for stage in read.stages(run.lines)]
    return " · ".join(count for count in counts if not count.endswith(" 0 updates"))


def _headline(run: Run) -> str:
    base, trained = read.evaluations(run.lines, BASE)[-1:], read.evaluations(run.lines, TRAINED)[-1:]
    seconds = {stage: sum(parts.values()) for stage, parts in read.stage_seconds(run.lines).items()}
    cards = [
        _change("Gold win-rate", base, trained, "win_rate", "against references, held-out prompts, temperature 1"),
        _change("Gold score", base, trained, "gold_mean", "points of the task's judge"),
        _change("KL to the reference", [], trained, "kl", "nats a completion, on fresh samples"),
        _change("Distinct completions", base, trained, "distinct_completions", "of the evaluation's samples"),
        _change("Reward model", [], read.evaluations(run.lines, "reward_model")[-1:], "heldout_accuracy", RIGHT),
        page.card("Wall time", format_seconds(sum(seconds.values())), f"{len(seconds)} stages") if seconds else "",
    ]
    return f'<div class="cards">{"".join(cards)}</div>' if any(cards) else ""


RIGHT = "of held-out comparisons ordered as gold does"


def _change(title: str, base: Sequence[Line], trained: Sequence[Line], name: str, note: str) -> str:
    """A card "before → after ± 95 %"; only what is known of the two."""
    before, after = (next((line[name] for line in lines if name in line), None) for lines in (base, trained))
    if after is None and before is None:
        return ""
    known = [f"<i>{format_figure(before)} →</i>" if before is not None else ""]
    known.append("<i>?</i>" if after is None else format_figure(after))
    stderr = next((line.get(f"{name}_stderr") for line in trained), None)
    if stderr is not None:
        note += f", ± {plots.INTERVAL * stderr:.2g} (95 %)"
    return page.card(title, " ".join(known), note)


def _pairs(run: Run) -> str:
    """The last completion "before" and the last "after" of each prompt, side by side."""
    before, after = ({text["ordinal"]: text for text in read.of_kind(run.samples, kind)} for kind in KINDS)
    both = [(before.get(ordinal), after.get(ordinal)) for ordinal in dict.fromkeys([*before, *after])]
    rows = [_pair_row(first, second) for first, second in both[:MAX_PAIRS]]
    head = ("prompt", "before", "gold", "reward", "after", "gold", "reward")
    return page.table(head, rows, ("text", "text", "number", "number", "text", "number", "number")) if rows else ""


KINDS = ("before", "after")


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
    """Each figure of the last evaluation of every stage, ± 95 % where its standard error is known; then best-of-n."""
    last = {line["of"]: line for line in run.lines if "of" in line and line["of"] != BEST_OF_N}
    names = read.figure_names(list(last.values()))
    rows = [[page.text(name.replace("_", " ")), *(_evaluated(line, name) for line in last.values())] for name in names]
    head = ("figure", *(f"{of}, update {line['update']}" for of, line in last.items()))
    table = page.table(head, rows, ("", *("number" for _ in last))) if rows else ""
    return table + _best_of_n(read.evaluations(run.lines, BEST_OF_N))


def _best_of_n(lines: Sequence[Line]) -> str:
    names = [name for name in read.figure_names(lines) if name != "n"]
    rows = [
        [str(line["n"]), format_figure(trade_off.best_of_n_kl(line["n"])), *(_evaluated(line, name) for name in names)]
        for line in sorted(lines, key=lambda line: line["n"])
    ]
    head = ("best of n", "KL, analytic", *(name.replace("_", " ") for name in names))
    return f"<p></p>{page.table(head, rows, tuple('number' for _ in head))}" if rows else ""


def _evaluated(line: Line, name: str) -> str:
    if name not in line:
        return "<i>–</i>"
    stderr = line.get(f"{name}_stderr")
    return format_figure(line[name]) + ("" if stderr is None else f" ± {plots.INTERVAL * stderr:.2g}")
