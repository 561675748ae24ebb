"""Draws who did what when in the RLHF stage, and says in words which side the other one waited for.

The seconds of a round are medians over the rounds of the newest process, the first two (which compile and begin) left out.
With g = generate, t = train + publish, an asynchronous run takes at least max(g, t) a round and a synchronous one g + t; time
that the reader of events takes from the trainer (evaluations, checkpoints) comes on top and is shown apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rlhf_jax.observe.lines import Line
from rlhf_jax.observe.progress import format_figure
from rlhf_jax.report import read, style

COLORS = {
    "generate": style.HELDOUT,
    "train": style.SECOND,
    "publish": style.THIRD,
    "wait": style.REST,
    "host": style.TRAINING,
}
SHOWN_ROUNDS = 8
LEFT_OUT = 2
LANES = {"sampler": 2.0, "trainer": 1.0, "host": 0.25}


@dataclass(frozen=True)
class Speed:
    """Seconds of a round, medians; `round_seconds` is from one round's begin to the next one's, host time included."""

    generate: float
    train: float
    publish: float
    sampler_wait: float
    trainer_wait: float
    host: float
    round_seconds: float
    asynchronous: bool

    @property
    def bound(self) -> float:
        """The least that this run's loop could take of these calls."""
        trainer = self.train + self.publish
        return max(self.generate, trainer) if self.asynchronous else self.generate + trainer


def newest(spans: Sequence[Line]) -> list[Line]:
    """The spans of the last process that wrote any."""
    return [span for span in spans if span["began"] == spans[-1]["began"]] if spans else []


def speed(spans: Sequence[Line], asynchronous: bool) -> Speed | None:
    """None where fewer than two rounds are left to measure."""
    spans = newest(spans)
    rounds = sorted({span["round_index"] for span in spans if span["what"] == "train"})[LEFT_OUT:]
    if len(rounds) < 2:
        return None
    begins = [min(s["begin"] for s in spans if s["side"] == "trainer" and s["round_index"] == r) for r in rounds]

    def median(side: str, what: str) -> float:
        of_round = dict.fromkeys(rounds, 0.0)
        for span in spans:
            if span["side"] == side and span["what"] == what and span["round_index"] in of_round:
                of_round[span["round_index"]] += span["end"] - span["begin"]
        return float(np.median(list(of_round.values())))

    return Speed(
        generate=median("sampler", "generate"),
        train=median("trainer", "train"),
        publish=median("trainer", "publish"),
        sampler_wait=median("sampler", "wait"),
        trainer_wait=median("trainer", "wait"),
        host=median("trainer", "host"),
        round_seconds=float(np.median(np.diff(begins))),
        asynchronous=asynchronous,
    )


def sentences(found: Speed) -> list[str]:
    """Which side bounds the run, how near it came, and which of async RLHF's levers (arXiv 2410.18252, §4) fits."""
    trainer = found.train + found.publish
    generation = found.generate > trainer
    side, least, most = ("generation", trainer, found.generate) if generation else ("training", found.generate, trainer)
    lever = (
        "more updates of a round (`rlhf.num_epochs`) use the trainer's idle time, for more KL at one win-rate"
        if generation
        else "more samples a prompt (`rlhf.samples_per_prompt`) with best against worst use the sampler's idle time"
    )
    loop = "asynchronous" if found.asynchronous else "synchronous"
    return [
        f"A round generates for {found.generate:.3g} s and trains for {trainer:.3g} s, "
        f"{format_figure(100 * found.publish / max(found.round_seconds, 1e-9))} % of a round to publish: "
        f"the run is {side}-bound ({format_figure(most / max(least, 1e-9))} to 1), so {lever}.",
        f"A round took {found.round_seconds:.3g} s; the bound of the {loop} loop is {found.bound:.3g} s "
        f"({format_figure(found.round_seconds / max(found.bound, 1e-9))} of it). The sampler waited "
        f"{found.sampler_wait:.3g} s a round, the trainer {found.trainer_wait:.3g} s.",
    ]


def draw(spans: Sequence[Line], lines: Sequence[Line]) -> Figure | None:
    """Some rounds of the newest process as bars, a lane a side, and how often samples of each age were trained on."""
    spans = newest(spans)
    rounds = sorted({span["round_index"] for span in spans if span["what"] == "train"})
    if not rounds:
        return None
    figure, (bars, ages) = style.panels(2, 2, 2.6)
    bars.set_position((0.085, 0.2, 0.63, 0.66))
    ages.set_position((0.78, 0.2, 0.21, 0.66))
    first = rounds[min(LEFT_OUT, max(len(rounds) - SHOWN_ROUNDS, 0))]
    window = [r for r in rounds if first <= r < first + SHOWN_ROUNDS]
    _draw_bars(bars, spans, window)
    _draw_ages(ages, lines)
    return figure


def _draw_bars(ax: Any, spans: Sequence[Line], window: Sequence[int]) -> None:
    shown = [span for span in spans if span["side"] == "trainer" and span["round_index"] in window]
    begin, end = min(span["begin"] for span in shown), max(span["end"] for span in shown)
    style.axes(ax, f"Rounds {window[0]} to {window[-1]}", "seconds since the stage's loop began", "")
    for span in spans:
        if span["end"] <= begin or span["begin"] >= end:
            continue
        lane = "host" if span["what"] == "host" else span["side"]
        height = 0.3 if lane == "host" else 0.8
        left = max(span["begin"], begin)
        width = min(span["end"], end) - left
        ax.barh(
            LANES[lane], width, left=left, height=height, color=COLORS[span["what"]], edgecolor="white", linewidth=0.4
        )
        if span["what"] in ("generate", "train") and width > 0.03 * (end - begin):
            ax.text(
                left + width / 2,
                LANES[lane],
                str(span["round_index"]),
                ha="center",
                va="center",
                fontsize=7,
                color="white",
            )
    ax.set_yticks(list(LANES.values()), list(LANES))
    ax.set_ylim(-0.1, 2.6)
    ax.set_xlim(begin, end)
    ax.grid(visible=False, axis="y")
    ax.legend(
        handles=[Patch(color=color, label=what) for what, color in COLORS.items()],
        ncols=len(COLORS), fontsize=7.5, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), labelcolor=style.MUTED,
    )  # fmt: skip


def _draw_ages(ax: Any, lines: Sequence[Line]) -> None:
    found = [int(line["age"]) for line in read.updates(lines, read.TRAINED) if "age" in line]
    style.axes(ax, "Age of the samples", "updates old when trained on", "updates")
    values, counts = np.unique(found, return_counts=True)
    ax.bar(values, counts, color=style.HELDOUT, width=0.7)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if len(values) < 12:
        ax.set_xticks(values)
    ax.grid(visible=False, axis="x")
