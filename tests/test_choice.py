"""The choice of groups: a permutation of a stage, draws from a buffer, and the windows they are of."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from rlhf_jax.clock import Clock, choice
from rlhf_jax.types import Samples
from tests.test_clock import check_issues

KEY = jax.random.key(7)


def of_rounds(clock: Clock, num_groups: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(round, group in it) of what each round trains on."""
    found = []
    for r in range(clock.num_rounds):
        groups = choice.chosen(clock, num_groups, KEY, r)
        assert groups.dtype == np.int32
        assert groups.shape == (num_groups,)
        found.append((clock.window(r)[0] + groups // num_groups, groups % num_groups))
    return found


def random_clocks(count: int):
    """Clocks with stages or a buffer, from a seed."""
    draw = random.Random(20)
    for _ in range(count):
        sizes, every = (draw.randint(1, 3), draw.randint(1, 2)), draw.choice((1, 2, 3))
        if draw.random() < 0.5:
            staged = draw.choice(("in_order", "shuffled"))
            yield Clock(every * draw.choice((1, 4)), *sizes, 0, sync_every=every, staged=staged)
        else:
            rest = {"sync_every": every, "buffer_rounds": draw.choice((1, 2, 5, 40))}
            rest |= {"buffer_draw": draw.choice(("uniform", "permutation"))}
            yield Clock(draw.choice((1, 4, 12)), *sizes, draw.choice((0, 1, 3)), **rest)


def test_what_is_chosen_is_there_is_kept_and_is_no_older_than_the_bound():
    """A round's groups are of its window, whose rounds a checkpoint holds, and their ages have the
    bound; with no lag and every round renewed, u(H - 1) + u - 1 of a buffer, u M - 1 of a stage.
    """
    for clock in random_clocks(30):
        u, num_groups = clock.updates_per_round, 6
        oldest = 0
        for r, (sources, _) in enumerate(of_rounds(clock, num_groups)):
            window = clock.window(r)
            assert set(sources.tolist()) <= set(window)
            assert r in window
            assert len(window) <= clock.max_window
            sampled = [w for w in window if w < r or clock.version(w) < r * u]
            assert set(sampled) <= set(clock.issued_before(r))
            assert all(clock.outlives(w, clock.version(w)) for w in clock.issued_before(r))
            oldest = max(oldest, *(clock.age(r, u - 1, clock.version(w)) for w in sources.tolist()))
            clock.check_version(r, clock.version(window[0]), clock.version(window[-1]))
        assert oldest <= clock.max_age
        reach = clock.lag + clock.sync_every + max(0, clock.buffer_rounds - 1)
        if clock.sync_every > 1 or clock.buffer_rounds:
            reach = min(reach, clock.num_rounds)
        assert clock.max_age == u * reach - 1
        if clock.staged != "none":
            assert {clock.age(r, 0) for r in range(clock.num_rounds)} == {
                u * place for place in range(clock.sync_every)
            }


def test_issues_of_stages_and_buffers_are_those_of_their_versions():
    for clock in random_clocks(40):
        plain = dataclasses.replace(clock, staged="none", buffer_rounds=0, buffer_draw="uniform")
        check_issues(plain, plain.lag + plain.sync_every)
        assert [clock.issued_at(r) for r in range(clock.num_rounds)] == [
            plain.issued_at(r) for r in range(clock.num_rounds)
        ]


def test_a_shuffled_stage_is_trained_on_once_in_another_order():
    """Two stages of three rounds: each a permutation of its 12 groups, and another one."""
    clock = Clock(6, 2, 1, sync_every=3, staged="shuffled")
    found = [sources * 4 + groups for sources, groups in of_rounds(clock, 4)]
    orders = [np.concatenate(found[:3]), np.concatenate(found[3:]) - 12]
    for order in orders:
        assert sorted(order.tolist()) == list(range(12)) != order.tolist()
    assert not np.array_equal(*orders)


@pytest.mark.parametrize("draw", ["uniform", "permutation"])
def test_draws_from_a_buffer_are_even_over_its_rounds(draw):
    """Shares of the newest, the second, ... round are 1/H each; an update's draws are without
    repetition only where they are a permutation; of uniform draws 1/e of the groups is never used.
    """
    clock = Clock(400, 2, 1, buffer_rounds=4, buffer_draw=draw)
    found, num_groups = of_rounds(clock, 32), 32
    ages = np.concatenate([r - sources for r, (sources, _) in enumerate(found)][3:])
    # A share of 1/4 of 397 * 32 draws has a standard deviation of 0.0038.
    np.testing.assert_allclose(np.bincount(ages, minlength=4) / ages.size, 0.25, atol=0.02)
    used = np.zeros((400, num_groups), int)
    repeated = 0
    for sources, groups in found:
        np.add.at(used, (sources, groups), 1)
        for half in (slice(0, 16), slice(16, 32)):
            repeated += 16 - len(
                set(zip(sources[half].tolist(), groups[half].tolist(), strict=True))
            )
    assert (repeated == 0) == (draw == "permutation")
    never = float((used[:-3] == 0).mean())
    # permutation: (1 - 16/128)^8 = 0.344 where the buffer is full; uniform: (1 - 1/128)^128 = 0.367
    assert never == pytest.approx(np.exp(-1) if draw == "uniform" else (7 / 8) ** 8, abs=0.02)


def test_draws_are_functions_of_the_key_and_the_update():
    """The first draws of seed 7, as they were when this was written: a resumed run, and one of another
    release, draws them again.
    """
    clock = Clock(20, 2, 2, buffer_rounds=5)
    drawn = choice.chosen(clock, 4, KEY, 9)
    assert np.array_equal(drawn, choice.chosen(clock, 4, KEY, 9))
    # Minibatch m of round 9 draws by update 9 * 4 + m, two of 20 groups.
    key = jax.random.fold_in(KEY, np.uint32(2**32 - 1))
    updates = [jax.random.fold_in(key, 36 + minibatch) for minibatch in range(2)]
    expected = [jax.random.randint(update, (2,), 0, 20) for update in updates]
    assert np.array_equal(drawn, np.concatenate(expected))
    others = [choice.chosen(clock, 4, KEY, r) for r in range(10, 14)]
    others.append(choice.chosen(clock, 4, jax.random.key(8), 9))
    assert not any(np.array_equal(drawn, other) for other in others)


@pytest.mark.parametrize("draw", ["uniform", "permutation"])
def test_a_longer_run_draws_the_same(draw):
    """A run that has fewer rounds than its buffer may grow."""
    clocks = [Clock(rounds, buffer_rounds=9, buffer_draw=draw) for rounds in (4, 12)]
    drawn = [[choice.chosen(clock, 4, KEY, r).tolist() for r in range(4)] for clock in clocks]
    assert drawn[0] == drawn[1]


def test_a_buffer_of_one_round_in_order_is_the_round():
    clock = Clock(5, 2, 1, lag=2, buffer_rounds=1, buffer_draw="in_order")
    for r, (sources, groups) in enumerate(of_rounds(clock, 4)):
        assert sources.tolist() == [r] * 4
        assert groups.tolist() == [0, 1, 2, 3]
    assert clock.max_age == Clock(5, 2, 1, lag=2).max_age


def test_groups_are_gathered_with_all_that_is_theirs():
    """Two rounds of P=3, G=2: every array has the rows of its groups, and one may come twice."""

    def rounds(first: int) -> Samples:
        rows = np.arange(first, first + 6)
        columns = rows[:, None] * 10 + np.arange(5)
        return Samples(
            prompt_tokens_BQ=columns[:, :3],
            prompt_mask_BQ=columns[:, :3] > 0,
            tokens_BC=columns,
            mask_BC=columns % 2 == 0,
            behavior_logprob_BC=columns / 8,
            finished_B=rows % 2 == 0,
            ordinal_B=rows // 2,
            sample_index_B=rows % 2,
            version_BC=columns // 3,
            temperature=np.float32(0.7),
            samples_per_prompt=2,
        )

    one, other = rounds(0), rounds(6)
    found = choice.gather([one, other], np.array([4, 0, 4]))
    rows = [8, 9, 0, 1, 8, 9]
    for name, array in vars(found).items():
        if name in ("temperature", "samples_per_prompt"):
            assert array == getattr(one, name)
        else:
            whole = np.concatenate([getattr(one, name), getattr(other, name)])
            assert np.array_equal(array, whole[rows]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"staged": "yes"}, "staged is 'yes'; accepted: none, in_order, shuffled"),
        ({"staged": "shuffled", "lag": 1}, "staged is 'shuffled' with lag 1; accepted: lag 0"),
        (
            {"staged": "in_order", "sync_every": 4},
            "sync_every=4, which does not divide the run's 6",
        ),
        ({"staged": "shuffled", "buffer_rounds": 2}, "beside buffer_rounds=2, and both choose"),
        ({"staged": "shuffled", "bounded": True}, "staged is 'shuffled' beside clock=bounded"),
        ({"staged": "in_order", "inflight": True}, "staged is 'in_order' beside weights=inflight"),
        (
            {"staged": "in_order", "version_schedule": (0,) * 6},
            "'in_order' beside version_schedule",
        ),
        ({"buffer_rounds": -1}, "buffer_rounds is -1; accepted: 0"),
        ({"buffer_rounds": 2, "bounded": True}, "buffer_rounds is 2 beside clock=bounded"),
        ({"buffer_rounds": 2, "inflight": True}, "buffer_rounds is 2 beside weights=inflight"),
        ({"buffer_draw": "permutation"}, "buffer_draw is 'permutation' without a buffer"),
        ({"buffer_rounds": 2, "buffer_draw": "in_order"}, "'in_order' with buffer_rounds=2"),
    ],
)
def test_combinations_that_are_not_defined_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Clock(6, **changes)


def test_a_buffer_goes_with_a_version_schedule():
    clock = Clock(4, version_schedule=(0, 1, 0, 3), buffer_rounds=3)
    assert clock.max_age == 3
    clock.check_version(3, 0, 3)
    with pytest.raises(RuntimeError, match="versions 1 to 4; the clock gives it 0 to 3"):
        clock.check_version(3, 1, 4)
