"""Draws the sides of the RLHF stage at work, and says in words which of them waited for the other.

The seconds of a round are medians over the rounds of the newest process, the first two (which
compile and begin) left out. They are left out of the picture too, which would show little else.
With g = generate, t = train + publish, an asynchronous run takes at least max(g, t) a round and a
synchronous one g + t; time that the reader of events takes from the trainer (evaluations,
checkpoints) comes on top and is shown apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import read
from rlhf_jax.report.formats import duration, number, percent
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import Picture

COLORS = {
    "generate": style.HELDOUT,
    "train": style.SECOND,
    "publish": style.THIRD,
    "wait": style.REST,
    "host": style.TRAINING,
}
SHOWN_ROUNDS, NARROW_ROUNDS = 8, 3
LEFT_OUT = 2
LEAST_END = 0.05
"""Share of the axis after the last tick."""
LEAST_ROUNDS = 2
LANES = ("sampler", "trainer", "host")
HEIGHTS = {"sampler": 0.8, "trainer": 0.8, "host": 0.35}
PAIR_ALGORITHMS = ("online_dpo", "online_ipo", "best_of_n")
"""Algorithms that train on as many rows per prompt, however many samples there are."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a round, medians; `round_seconds` is from one round's begin to the next one's,
    host time included.
    """

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
    """The spans of the last process that wrote any, which follow one another."""
    places = (i for i, span in enumerate(spans) if span["began"] == spans[-1]["began"])
    return list(spans[next(places) :]) if spans else []


def _trained(spans: Sequence[Line]) -> list[int]:
    """Rounds that were trained on, in order."""
    return sorted({span["round_index"] for span in spans if span["what"] == "train"})


def speed(spans: Sequence[Line], asynchronous: bool) -> Speed | None:
    """None where fewer than two rounds are left to measure."""
    spans = newest(spans)
    rounds = _trained(spans)[LEFT_OUT:]
    if len(rounds) < LEAST_ROUNDS:
        return None
    begins: dict[int, float] = {}
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    for span in spans:
        side, round_index, begin = span["side"], span["round_index"], span["begin"]
        if side == "trainer":
            begins[round_index] = min(begin, begins.get(round_index, begin))
        by_round = seconds.setdefault((side, span["what"]), {})
        by_round[round_index] = by_round.get(round_index, 0.0) + span["end"] - begin

    def median(side: str, what: str) -> float:
        by_round = seconds.get((side, what), {})
        return float(np.median([by_round.get(r, 0.0) for r in rounds]))

    return Speed(
        generate=median("sampler", "generate"),
        train=median("trainer", "train"),
        publish=median("trainer", "publish"),
        sampler_wait=median("sampler", "wait"),
        trainer_wait=median("trainer", "wait"),
        host=median("trainer", "host"),
        round_seconds=float(np.median(np.diff([begins[r] for r in rounds]))),
        asynchronous=asynchronous,
    )


def sentences(speed: Speed, algorithm: str = "") -> list[str]:
    """The side that bounds the run, how near it came, and what would use idle time (arXiv
    2410.18252, section 4).

    Args:
      speed: medians over rounds.
      algorithm: its name, which decides whether more samples make training longer; "" where it is
        not known.
    """
    trainer, a_round = speed.train + speed.publish, max(speed.round_seconds, 1e-9)
    slow, fast = (
        ("generation", "training") if speed.generate > trainer else ("training", "generation")
    )
    least, most = sorted((speed.generate, trainer))
    first = (
        f"A round took {duration(speed.round_seconds)}: {duration(speed.generate)} to generate its "
        "samples and "
        f"{duration(trainer)} to train on them."
    )
    if not speed.asynchronous:
        return [
            f"{first} The loop is synchronous, so the two follow one another. With "
            "`rlhf.loop=asynchronous` and "
            "`rlhf.lag=1` they overlap: on devices of their own a round would take "
            f"{duration(most)} or a little more."
        ]
    ratio = f" ({number(most / least)} to 1)" if least > 0 else ""
    sides = (
        f"The run is bound by {slow}{ratio}. The sampler was idle for "
        f"{percent(speed.sampler_wait / a_round)} of a round and "
        f"the trainer for {percent(speed.trainer_wait / a_round)}. "
        f"A round took {number(a_round / max(speed.bound, 1e-9))} times as long as {slow} alone."
    )
    return [first, sides, *_advice(fast, least / max(most, 1e-9), algorithm)]


def _advice(idle: str, busy_share: float, algorithm: str) -> list[str]:
    """One sentence about how the idle side could be used; none where both are nearly as slow, or
    nothing is known to help.
    """
    if busy_share > 0.9:
        return []
    if idle == "training":
        return [
            "To use the trainer's idle time, raise `rlhf.num_epochs`: each round is then trained "
            "on more than once, at the "
            "cost of older samples and more KL."
        ]
    if algorithm in PAIR_ALGORITHMS:
        return [
            f"To use the sampler's idle time, raise `rlhf.samples_per_prompt`: {algorithm} trains "
            "on as many rows per prompt, "
            "however many samples it chooses them from."
        ]
    return []


def left_out(spans: Sequence[Line]) -> str:
    """A sentence about the first rounds, which no picture shows; "" where none is left out."""
    spans = newest(spans)
    shown = _window(spans)
    before = [r for r in _trained(spans) if shown and r < shown[0]][:LEFT_OUT]
    if not before:
        return ""
    earlier = [
        span for span in spans if span["side"] == "trainer" and span["round_index"] in before
    ]
    seconds = max(span["end"] for span in earlier) - min(span["begin"] for span in earlier)
    rounds = f"{len(before)} rounds" if len(before) > 1 else "round"
    are = "are" if len(before) > 1 else "is"
    return f"The first {rounds} of the newest process took {duration(seconds)}, with compilation in it, and {are} not drawn."


def _window(spans: Sequence[Line]) -> list[int]:
    """The rounds that are drawn: after those that compile, unless hardly any would be left."""
    rounds = _trained(spans)
    first = max(0, min(LEFT_OUT, len(rounds) - LEAST_ROUNDS))
    return rounds[first : first + SHOWN_ROUNDS]


def draw(spans: Sequence[Line], lines: Sequence[Line]) -> Figure | None:
    """The pictures of `pictures` side by side; None where no round was trained on."""
    panels = pictures(spans, lines)
    return style.sheet(panels, len(panels)) if panels else None


def pictures(spans: Sequence[Line], lines: Sequence[Line]) -> list[Picture]:
    """Some rounds of the newest process as bars, a lane for each side, and how often samples of
    each age were trained on.
    """
    spans = newest(spans)
    window = _window(spans)
    if not window:
        return []
    title, spans = _title(window), _shown(spans, window)
    host = (
        " The host's bars are the reading of results (metrics, evaluations, checkpoints)."
        if _has_host(spans)
        else ""
    )
    broad = Picture(
        title,
        f"Bars carry the number of their round.{host}",
        partial(_draw_bars, title, spans, window),
        width=8.6,
        left=0.85,
        wide=True,
    )
    few = window[:NARROW_ROUNDS]
    narrow = replace(broad, paint=partial(_draw_bars, _title(few), spans, few), width=3.9)
    drawn = [replace(broad, narrow=narrow)]
    trained = read.updates(lines, read.TRAINED)
    ages = [int(line["age"]) for line in trained if "age" in line]
    if ages:
        oldest = read.has_mixed_rows(trained)
        drew = "the oldest token of the round" if oldest else "the samples"
        name = "Age of the oldest token" if oldest else "Age of the samples"
        note = f"Updates between the version that drew {drew} and the one that trained on "
        note += "it." if oldest else "them."
        drawn.append(Picture(name, note, partial(_draw_ages, name, ages), width=3.4))
    return drawn


def _title(window: Sequence[int]) -> str:
    return f"Rounds {window[0]} to {window[-1]}" if len(window) > 1 else f"Round {window[0]}"


def _has_host(spans: Sequence[Line]) -> bool:
    return any(span["what"] == "host" for span in spans)


def _lane(span: Line) -> str:
    return "host" if span["what"] == "host" else span["side"]


def _bounds(spans: Sequence[Line], window: Sequence[int]) -> tuple[float, float]:
    """The seconds in which the trainer is at work on some rounds."""
    rounds = set(window)
    found = [span for span in spans if span["side"] == "trainer" and span["round_index"] in rounds]
    return min(span["begin"] for span in found), max(span["end"] for span in found)


def _shown(spans: Sequence[Line], window: Sequence[int]) -> list[Line]:
    """The spans of either side that fall into those seconds."""
    begin, end = _bounds(spans, window)
    return [span for span in spans if span["end"] > begin and span["begin"] < end]


def _draw_bars(title: str, spans: Sequence[Line], window: Sequence[int], ax: Axes) -> None:
    begin, end = _bounds(spans, window)
    shown = _shown(spans, window)
    style.plain_axes(ax, title, "seconds since the stage's loop began", "")
    ax.xaxis.set_major_formatter(style.Numbers())
    lanes = [lane for lane in LANES if any(_lane(span) == lane for span in shown)]
    for span in shown:
        lane = _lane(span)
        lane_y, left = -lanes.index(lane), max(span["begin"], begin)
        width = min(span["end"], end) - left
        color = COLORS[span["what"]]
        ax.barh(
            lane_y,
            width,
            left=left,
            height=HEIGHTS[lane],
            color=color,
            edgecolor="white",
            linewidth=0.4,
        )
        if span["what"] in ("generate", "train") and width > 0.03 * (end - begin):
            middle = left + width / 2
            ax.text(
                middle,
                lane_y,
                f"{span['round_index']}",
                ha="center",
                va="center",
                fontsize=7,
                color="white",
            )
    ax.set_yticks([-lane_y for lane_y in range(len(lanes))], lanes)
    ax.set_ylim(-len(lanes) + 0.5, 0.5)
    ax.set_xlim(begin, end)
    ticks = MaxNLocator(nbins=6).tick_values(begin, end)
    last = end - LEAST_END * (end - begin)  # the label of a later one would leave the picture
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if begin <= tick <= last]))
    ax.grid(visible=False, axis="y")
    activities = {span["what"] for span in shown}
    style.legend(
        ax,
        handles=[
            Patch(color=color, label=what) for what, color in COLORS.items() if what in activities
        ],
    )


def _draw_ages(name: str, ages: Sequence[int], ax: Axes) -> None:
    style.plain_axes(ax, name, "updates old when trained on", "updates")
    values, counts = np.unique(ages, return_counts=True)
    ax.bar(values, counts, color=style.HELDOUT, width=0.7)
    ax.xaxis.set_major_locator(
        FixedLocator(values.tolist()) if len(values) < 12 else MaxNLocator(integer=True)
    )
    ax.set_xlim(values[0] - 0.6, values[-1] + 0.6)
    ax.grid(visible=False, axis="x")
