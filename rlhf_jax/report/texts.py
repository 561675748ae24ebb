"""Tables of completions and of evaluations for a report."""

from collections.abc import Sequence

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import glossary, read
from rlhf_jax.report.elements import Cell, Element, Folded, Note, Table
from rlhf_jax.report.formats import ABSENT, cells, listed, number
from rlhf_jax.report.plots import trade_off
from rlhf_jax.report.read import BEST_OF_N, Run
from rlhf_jax.report.units import Units

NUM_PAIRS = 8
MAX_PAIRS = 64
MAX_DURING = 60
DURING = "Completions during training"
KINDS = ("before", "after")
SCORES = {"gold": "gold", "reward": "reward"}
NOTHING = Cell(ABSENT, kind="muted")


def pairs(run: Run) -> list[Element]:
    """The last completion "before" and the last "after" of each prompt, side by side."""
    texts = [text for kind in KINDS for text in read.select(run.samples, kind)]
    before, after = (
        {text["ordinal"]: text for text in texts if text["kind"] == kind} for kind in KINDS
    )
    both = [
        (before.get(ordinal), after.get(ordinal)) for ordinal in dict.fromkeys([*before, *after])
    ]
    scores = _known_scores(texts)
    shown, more = both[:NUM_PAIRS], both[NUM_PAIRS:MAX_PAIRS]
    tables: list[Element] = [_pair_table(shown, scores)] if shown else []
    return tables + ([Folded(f"{len(more)} more", [_pair_table(more, scores)])] if more else [])


def _known_scores(texts: Sequence[Line]) -> list[str]:
    """The scores that any of the texts has: a column of dashes says nothing."""
    return [name for name in SCORES if any(text.get(name) is not None for text in texts)]


def _pair_table(rows: Sequence[tuple[Line | None, Line | None]], scores: Sequence[str]) -> Table:
    head, kinds = ["prompt"], ["text"]
    for kind in KINDS:
        head += [kind, *(SCORES[name] for name in scores)]
        kinds += ["text", *("number" for _ in scores)]
    return Table(head, kinds, [_pair_row(*pair, scores) for pair in rows], stack=True)


def _pair_row(
    before: Line | None, after: Line | None, scores: Sequence[str]
) -> Sequence[str | Cell]:
    row: list[str | Cell] = [(before or after or {})["prompt"]]
    for sample, earlier in ((before, None), (after, before)):
        row += (
            [Cell("none", kind="muted"), *("" for _ in scores)]
            if sample is None
            else _sample_cells(sample, scores, earlier)
        )
    return row


def _sample_cells(sample: Line, scores: Sequence[str], before: Line | None = None) -> list[Cell]:
    values = [_score(sample[name], None if before is None else before[name]) for name in scores]
    return [Cell(sample["completion"], cut=not sample["finished"]), *values]


def _score(value: float | None, before: float | None) -> Cell:
    if value is None:
        return NOTHING
    change = 0 if before is None else value - before
    return Cell(number(value), kind="up" if change > 0 else "down" if change < 0 else "")


def during(run: Run) -> tuple[str, list[Element]]:
    """A summary that names the updates, and a table of completions of updates that are spread over
    all of training.
    """
    texts = read.select(run.samples, "during")
    if not texts:
        return "", []
    updates = list(dict.fromkeys(text["update"] for text in texts))
    most = max(1, MAX_DURING * len(updates) // len(texts))
    chosen = spread(updates, most)
    scores = _known_scores(texts)
    shown = [text for text in texts if text["update"] in chosen][:MAX_DURING]
    rows = [[str(text["update"]), text["prompt"], *_sample_cells(text, scores)] for text in shown]
    head = ("update", "prompt", "completion", *(SCORES[name] for name in scores))
    kinds = ("number", "text", "text", *("number" for _ in scores))
    all_or = "" if len(chosen) == len(updates) else f", {len(chosen)} of {len(updates)}"
    summary = f"{DURING}: updates {listed(chosen)}{all_or}"
    return summary, [Table(head, kinds, rows, stack=True)]


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, the first and the last among them.

    >>> spread(range(10), 4), spread([3, 5], 4), spread([1, 2, 3], 1)
    ([0, 3, 6, 9], [3, 5], [3])
    """
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def evaluations(run: Run, units: Units) -> list[Element]:
    """Each figure before and after training with its interval; then best-of-n."""
    known = [line for line in read.before_and_after(run.lines) if line is not None]
    rows = [
        [Cell(glossary.title(name, units), glossary.note(name)), *_cells(known, name)]
        for name in read.figure_names(known)
        if any(line.get(name) is not None for line in known)
    ]
    head = ("figure", *(f"{line['of']}, update {line['update']}" for line in known))
    table = Table(head, ("", *("number" for _ in known)), rows, stack=True)
    means = f"± is {units.half}. Samples of one prompt are not independent, so that each prompt counts once."
    explained = [Note(means)] if any("±" in cell.text for row in rows for cell in row) else []
    return [
        *explained,
        *([table] if rows else []),
        *_best_of_n(read.evaluations(run.lines, BEST_OF_N), units),
    ]


def _best_of_n(lines: Sequence[Line], units: Units) -> list[Element]:
    names = [name for name in read.figure_names(lines) if name not in ("n", "kl")]
    rows = [
        [
            f"{line['n']:g}",
            number(float(trade_off.best_of_n_kl(line["n"]))),
            *(_cells([line], name)[0] for name in names),
        ]
        for line in sorted(lines, key=lambda line: line["n"])
    ]
    if not rows:
        return []
    head = ("best of n", "KL, analytic", *(glossary.title(name, units) for name in names))
    sentence = "Best of n samples of the SFT policy, chosen by the reward model and judged by gold:"
    return [sentence, Table(head, tuple("number" for _ in head), rows, stack=True)]


def _cells(lines: Sequence[Line], name: str) -> list[Cell]:
    return [NOTHING if text == ABSENT else Cell(text) for text in cells(lines, name)]
