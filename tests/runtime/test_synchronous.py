"""The loop against a naive one that keeps all versions of the params: every lag, minibatches,
epochs; and traces.
"""

import contextlib

import jax
import numpy as np
import pytest
import tiny
from jax._src.array import ArrayImpl

from rlhf_jax.clock import Clock
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.sampler import version_range

from . import rounds
from .rounds import NUM_ROUNDS, naive, program_of, run, same


@pytest.mark.parametrize("num_epochs", [1, 2])
@pytest.mark.parametrize("num_minibatches", [1, 2])
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_the_loop_is_the_naive_one_that_keeps_every_version(lag, num_minibatches, num_epochs):
    updates = num_minibatches * num_epochs
    versions_of_rounds = [updates * max(0, r - lag) for r in range(NUM_ROUNDS)]
    events, params = run(Clock(NUM_ROUNDS, num_minibatches, num_epochs, lag))
    versions, samples = naive(versions_of_rounds, num_minibatches, num_epochs)
    assert same(params, versions[-1])
    trained = [rounds.host(event.samples) for event in events[synchronous.Scored]]
    assert [version_range(drawn) for drawn in trained] == [(v, v) for v in versions_of_rounds]
    assert all(same(*pair) for pair in zip(trained, samples, strict=True))
    assert [event.update for event in events[synchronous.Updated]] == list(
        range(NUM_ROUNDS * updates)
    )
    ages = [
        event.update - versions_of_rounds[event.update // updates]
        for event in events[synchronous.Updated]
    ]
    assert [event.age for event in events[synchronous.Updated]] == ages


def test_lags_are_told_apart():
    """Were all lags to give the same params, the comparisons above would say nothing."""
    ends = [run(Clock(NUM_ROUNDS, lag=lag))[1] for lag in range(4)]
    assert not any(same(ends[one], ends[other]) for one in range(4) for other in range(one))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_version_schedule_that_spells_a_lag_is_that_lag(lag):
    clock = Clock(NUM_ROUNDS, 2, 1, lag)
    version_schedule = tuple(clock.version(r) for r in range(NUM_ROUNDS))
    assert same(run(Clock(NUM_ROUNDS, 2, 1, version_schedule=version_schedule))[1], run(clock)[1])


@pytest.mark.parametrize(
    "version_schedule", [(0, 0, 0, 0, 0), (0, 1, 0, 3, 1)], ids=["frozen sampler", "mixed ages"]
)
def test_a_version_schedule_of_any_versions_is_the_naive_loop(version_schedule):
    events, params = run(Clock(NUM_ROUNDS, version_schedule=version_schedule))
    assert same(params, naive(list(version_schedule), 1, 1)[0][-1])
    assert [event.age for event in events[synchronous.Updated]] == [
        r - version for r, version in enumerate(version_schedule)
    ]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_run_that_begins_in_the_middle_ends_as_one_that_did_not(lag):
    """From the state at round 2 and the samples that were issued before it, as a checkpoint holds
    them.
    """
    clock = Clock(NUM_ROUNDS, 2, 1, lag)
    program, samples = program_of(clock), {}
    state = program.init(program.reference_params)
    for event in synchronous.run(program, state, 0, {}):
        if isinstance(event, synchronous.Sampled):
            samples[event.round_index] = rounds.host(event.samples)
        if isinstance(event, synchronous.RoundEnd) and event.round_index == 1:
            saved = rounds.host(event.states)
            break
    layout = jax.tree.map(
        lambda x: x.sharding, program.generate(program.publish(event.states), 0, 0)
    )
    pending = {r: jax.device_put(samples[r], layout) for r in clock.issued_before(2)}
    assert sorted(pending) == list(range(2, 2 + lag))
    restored = jax.device_put(saved, program.state_shardings)
    assert same(run(clock, 2, restored, pending)[1], run(clock)[1])


def test_prompts_of_every_round_are_trained_on_once_an_epoch():
    """Units of an epoch are a partition; the first epoch keeps the prompts' order; later ones
    differ by round and epoch.
    """
    program = program_of(Clock(NUM_ROUNDS, 2, 3))
    batch = tiny.make_batch(2 * rounds.PROMPTS)
    batch = batch.replace(tokens_RC=np.arange(2 * rounds.PROMPTS, dtype=np.int32)[:, None])
    orders = []
    for round_index, epoch in [(0, 0), (0, 1), (0, 2), (1, 1)]:
        parts = [
            program.minibatch(batch, round_index, 2 * epoch + part).tokens_RC[:, 0]
            for part in range(2)
        ]
        assert [len(part) for part in parts] == [rounds.PROMPTS] * 2
        order = np.concatenate(parts)
        np.testing.assert_array_equal(order[1::2], order[::2] + 1)  # pairs stay together
        assert sorted(order) == list(range(2 * rounds.PROMPTS))
        orders.append(order.tolist())
    assert orders[0] == list(range(2 * rounds.PROMPTS))
    assert len({tuple(order) for order in orders}) == 4


@contextlib.contextmanager
def no_host_reads(monkeypatch, accepted=()):
    """Reading an array's value raises, but for `accepted` arrays and the faults of a round.

    On a CPU the transfer guard lets reads pass.
    """
    read = ArrayImpl._value

    def refuse(array):
        is_accepted = any(array is each for each in accepted)
        if is_accepted or (array.shape == () and array.dtype == np.int32):
            return read.fget(array)  # type: ignore[attr-defined]
        raise AssertionError(f"the loop waits for {array.shape}")

    with monkeypatch.context() as patch, jax.transfer_guard_device_to_host("disallow"):
        patch.setattr(ArrayImpl, "_value", property(refuse))
        yield


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_args, **_kwargs: COMPILED.append(event) if "backend_compile" in event else None
)


def test_after_its_warm_up_the_loop_compiles_nothing_and_reads_only_at_ends_of_rounds(monkeypatch):
    clock = Clock(NUM_ROUNDS, 2, 2, lag=1)
    run(clock)
    program = program_of(clock)
    state = program.init(program.reference_params)
    before, checked, versions, generate = len(COMPILED), [], [], program.generate

    def noted(*arguments):
        samples = generate(*arguments)
        versions.extend((samples.version_BC, samples.mask_BC))
        return samples

    program.generate = noted
    assert before, "the counter counts"
    monkeypatch.setattr(
        synchronous, "check_policy", lambda first, scores, made: checked.append((first, len(made)))
    )
    with no_host_reads(monkeypatch, versions):
        for _ in synchronous.run(program, state, 0, {}):
            pass
    assert len(COMPILED) == before
    assert checked == [(4 * r, 4) for r in range(NUM_ROUNDS)]
    with no_host_reads(monkeypatch), pytest.raises(AssertionError, match="the loop waits"):
        float(jax.device_put(np.float32(1.0)))


def test_callers_params_survive_the_run():
    """The reference is a copy: the state that begins as it is donated."""
    program = rounds.make_program()
    before = rounds.host(program.reference_params)
    run(Clock(2))
    assert same(before, rounds.host(program.reference_params))


def test_states_of_an_update_are_those_of_its_version():
    """An evaluation within a round is of the version that its update made."""
    clock = Clock(2, num_minibatches=2, num_epochs=2)
    program = program_of(clock)
    seen = [
        rounds.host(event.states["policy"].params)
        for event in synchronous.run(program, program.init(program.reference_params), 0, {})
        if isinstance(event, synchronous.Updated)
    ]
    versions, _ = naive([0, 4], 2, 2)
    assert all(same(*pair) for pair in zip(seen, versions[1:], strict=True))
