"""Speed of rounds and of supervised updates, by hand."""

import numpy as np
import pytest

from rlhf_jax.records.rates import RoundRates, StepRates, Work, is_timing
from rlhf_jax.records.timeline import Timeline


class Clock(Timeline):
    """A timeline whose time is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def spend(self, side, what, round_index: int, seconds: float) -> None:
        begin, self.time = self.time, self.time + seconds
        self.add(side, what, round_index, begin)


def a_round(clock: Clock, rates: RoundRates, index: int) -> None:
    """A round of the synchronous loop, of 1 + 4 + 3 + 2 seconds, with 2 of them a pause."""
    clock.spend("trainer", "publish", index, 1.0)
    clock.spend("sampler", "generate", index, 4.0)
    begin = clock.time
    rates.scored(index)
    clock.time += 3.0
    for tokens in (30, 50):
        rates.count(index, 100, tokens)
    rates.paused(index, 2.0)
    clock.time += 2.0
    clock.add("trainer", "train", index, begin)


def test_the_speed_of_a_round_is_known_when_the_next_one_is_scored():
    clock = Clock()
    rates = RoundRates(clock, num_samples=16)
    a_round(clock, rates, 0)
    assert rates.of(0) == {}
    a_round(clock, rates, 1)
    assert rates.of(0) == {
        "round_seconds": 8.0,  # 10 from scoring to scoring, less the pause
        "generate_seconds": 4.0,
        "publish_seconds": 1.0,
        "train_seconds": 3.0,  # 5 less the pause
        "samples_per_second": 2.0,
        "sampled_tokens_per_second": 25.0,
        "trained_tokens_per_second": pytest.approx(80 / 3),
    }
    assert rates.of(-1) == {}
    assert all(is_timing(name) for name in rates.of(0))


def test_a_round_of_samples_of_several_rounds_has_no_speed_of_sampling():
    """Its tokens were sampled in other seconds; its speed of training is known."""
    given = []

    class Told:
        def figures(self, work, generate_seconds, train_seconds):
            given.append((generate_seconds, train_seconds))
            return {"train_mfu": 0.5}

    clock = Clock()
    rates = RoundRates(clock, num_samples=16, utilization=Told(), composed=True)
    for index in range(2):
        a_round(clock, rates, index)
    found = rates.of(0)
    assert given == [(None, 3.0)]
    assert "sampled_tokens_per_second" not in found
    assert found["trained_tokens_per_second"] == pytest.approx(80 / 3)
    assert (found["generate_seconds"], found["train_mfu"]) == (4.0, 0.5)


def test_a_round_that_an_earlier_process_sampled_has_no_speed_of_sampling():
    clock = Clock()
    rates = RoundRates(clock, num_samples=16)
    for index in range(2):
        rates.scored(index)
        clock.spend("trainer", "train", index, 5.0)
    assert rates.of(0) == {
        "round_seconds": 5.0,
        "train_seconds": 5.0,
        "samples_per_second": 16 / 5,
    }


def test_a_long_run_holds_few_rounds():
    clock = Clock()
    rates = RoundRates(clock, num_samples=16)
    for index in range(50):
        a_round(clock, rates, index)
    assert len(rates._rounds) == 3
    assert len(clock._seconds) <= 4
    assert len(clock.take()) == 150


def test_utilization_is_of_the_round_that_ended():
    class Half:
        def figures(self, work: Work, generate_seconds, train_seconds) -> dict[str, float]:
            assert work.prompt_lengths_B is not None
            return {"train_mfu": work.prompt_lengths_B.sum() / train_seconds / generate_seconds}

    clock = Clock()
    rates = RoundRates(clock, 16, Half())
    for index in range(2):
        clock.spend("sampler", "generate", index, 4.0)
        begin = clock.time
        rates.scored(index)
        clock.time += 3.0
        rates.count(index, 100, 50, (np.array([6, 6]), np.array([1, 2])))
        clock.add("trainer", "train", index, begin)
    assert rates.of(0)["train_mfu"] == 1.0


def test_the_first_update_and_one_after_a_pause_have_no_speed():
    times = iter([10.0, 12.0, 20.0, 24.0])
    rates = StepRates(lambda: next(times))
    assert rates.step(8, 40.0) == {}
    assert rates.step(8, 40.0) == {
        "step_seconds": 2.0,
        "rows_per_second": 4.0,
        "trained_tokens_per_second": 20.0,
    }
    rates.pause()
    assert rates.step(8, None) == {}
    assert rates.step(8, None) == {"step_seconds": 4.0, "rows_per_second": 2.0}


def test_timings_are_told_by_their_names():
    for name in ("seconds", "train_seconds", "rows_per_second", "train_mfu"):
        assert is_timing(name)
    for name in ("loss", "sampled_length", "age", "clipped_share", "kl"):
        assert not is_timing(name)
