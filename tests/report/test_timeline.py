"""What the timeline says of a made-up run: medians, bounds, the side that is waited for, and a
drawing of what is there.
"""

import pytest

from rlhf_jax.report.plots import timeline

ROUNDS = 6


def spans_of(generate: float, train: float, began: float = 1.0) -> list[dict]:
    """A lag-1 run of constant stages: both begin a round together, the shorter one waits."""
    found, now, longest = [], 0.0, max(generate, train + 0.1)
    for r in range(ROUNDS):
        pieces = [
            ("sampler", "generate", now, now + generate),
            ("sampler", "wait", now + generate, now + longest),
            ("trainer", "publish", now, now + 0.1),
            ("trainer", "train", now + 0.1, now + 0.1 + train),
            ("trainer", "host", now + 0.2, now + 0.3),
            ("trainer", "wait", now + 0.1 + train, now + longest),
        ]
        names = ("side", "what", "begin", "end")
        found += [
            {
                "stage": "rlhf",
                "began": began,
                "round_index": r,
                **dict(zip(names, piece, strict=True)),
            }
            for piece in pieces
        ]
        now += longest
    return found


def test_medians_and_the_bound():
    found = timeline.speed(spans_of(2.0, 0.9), asynchronous=True)
    assert found is not None
    assert (found.generate, found.train, found.publish) == pytest.approx((2.0, 0.9, 0.1))
    assert (found.sampler_wait, found.trainer_wait, found.host) == pytest.approx((0.0, 1.0, 0.1))
    assert (found.round_seconds, found.bound) == pytest.approx((2.0, 2.0))
    alone = timeline.speed(spans_of(2.0, 0.9), asynchronous=False)
    assert alone is not None
    assert alone.bound == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("generate", "side", "lever"),
    [(2.0, "generation", "num_epochs"), (0.5, "training", "samples_per_prompt")],
)
def test_the_side_that_is_waited_for_is_named_with_its_lever(generate, side, lever):
    found = timeline.speed(spans_of(generate, 0.9), asynchronous=True)
    assert found is not None
    text = " ".join(timeline.sentences(found, "online_dpo"))
    assert f"bound by {side} (2.00 to 1)" in text
    assert lever in text
    assert "e-0" not in text


def test_more_samples_are_not_advised_where_they_make_training_longer():
    found = timeline.speed(spans_of(0.5, 0.9), asynchronous=True)
    assert found is not None
    assert "samples_per_prompt" not in " ".join(timeline.sentences(found, "grpo"))
    assert "samples_per_prompt" not in " ".join(timeline.sentences(found))


@pytest.mark.parametrize(("generate", "most"), [(2.0, "2 s"), (0.5, "1 s")])
def test_a_synchronous_run_is_told_of_the_loop_and_of_nothing_idle(generate, most):
    found = timeline.speed(spans_of(generate, 0.9), asynchronous=False)
    assert found is not None
    text = " ".join(timeline.sentences(found, "online_dpo"))
    assert "idle" not in text
    assert "waited" not in text
    assert "samples_per_prompt" not in text
    assert f"a round would take {most} or a little more" in text


def test_sides_that_are_as_slow_are_given_no_advice():
    found = timeline.speed(spans_of(0.98, 0.9), asynchronous=True)
    assert found is not None
    assert len(timeline.sentences(found, "online_dpo")) == 2


def test_only_the_newest_process_counts():
    both = spans_of(2.0, 0.9) + spans_of(0.5, 0.9, began=2.0)
    found = timeline.speed(both, asynchronous=True)
    assert found is not None
    assert found.generate == pytest.approx(0.5)


def test_too_few_rounds_say_nothing():
    assert (
        timeline.speed(
            [span for span in spans_of(1.0, 1.0) if span["round_index"] < 3], asynchronous=True
        )
        is None
    )
    assert timeline.speed([], asynchronous=True) is None
    assert timeline.draw([], []) is None


class Counted(dict):
    """A span that counts how often its values are read."""

    reads = 0

    def __getitem__(self, key):
        Counted.reads += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("summary", ["speed", "left_out", "pictures"])
def test_the_work_is_linear_in_rounds(summary):
    """Four times as many rounds have their spans read at most about four times as often."""
    counts = []
    for rounds in (100, 400):
        spans = [
            Counted(span, round_index=r, begin=2 * r + span["begin"], end=2 * r + span["end"])
            for r in range(rounds)
            for span in spans_of(2.0, 0.9)[:6]
        ]
        Counted.reads = 0
        if summary == "speed":
            found = timeline.speed(spans, asynchronous=True)
            assert found is not None
            assert (found.generate, found.round_seconds) == pytest.approx((2.0, 2.0))
        elif summary == "left_out":
            timeline.left_out(spans)
        else:
            for picture in timeline.pictures(spans, []):
                timeline.style.sheet([picture])
        counts.append(Counted.reads)
    assert counts[1] < 5 * counts[0]
    assert counts[1] < 20 * len(spans)


def test_bars_stand_where_the_spans_are():
    lines = [{"stage": "rlhf", "update": update, "age": min(update, 1)} for update in range(ROUNDS)]
    figure = timeline.draw(spans_of(2.0, 0.9), lines)
    assert figure is not None
    bars, ages = figure.axes
    widths = sorted({round(float(patch.get_width()), 6) for patch in bars.patches})
    assert {0.1, 0.9, 2.0} <= set(widths)
    assert [patch.get_height() for patch in ages.patches] == [1, ROUNDS - 1]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["sampler", "trainer", "host"]


def test_a_side_that_did_nothing_has_no_lane():
    spans = [span for span in spans_of(2.0, 0.9) if span["what"] != "host"]
    figure = timeline.draw(spans, [])
    assert figure is not None
    (bars,) = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["sampler", "trainer"]
    legend = bars.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "generate",
        "train",
        "publish",
        "wait",
    ]


@pytest.mark.parametrize(
    ("rounds", "title"),
    [(6, "Rounds 2 to 5"), (3, "Rounds 1 to 2"), (2, "Rounds 0 to 1"), (1, "Round 0")],
)
def test_rounds_that_compile_are_not_drawn_where_others_are(rounds, title):
    """There are 98 s between the first two rounds and the others, as where something compiles."""
    spans = [span for span in spans_of(2.0, 0.9) if span["round_index"] < rounds]
    late = [
        span
        | {
            name: span[name] + (98.0 if span["round_index"] > 1 else 0.0)
            for name in ("begin", "end")
        }
        for span in spans
    ]
    figure = timeline.draw(late, [])
    assert figure is not None
    assert figure.axes[0].get_title(loc="left") == title
    said = timeline.left_out(late)
    expected = {
        6: "The first 2 rounds of the newest process took 4 s",
        3: "The first round of the newest process took 2 s",
    }
    assert said.startswith(expected.get(rounds, ""))
    assert bool(said) == (rounds > 2)
