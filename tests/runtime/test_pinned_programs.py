"""Pinned rows of real programs with adapters: the tokens of static batches of the exact lag, by few
programs, in threads as without them.
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from rlhf_jax.clock import Clock, Stream
from rlhf_jax.devices import memory
from rlhf_jax.models.common import adapters
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.inflight import loop
from rlhf_jax.runtime.inflight.cuts import Cut, Saving
from rlhf_jax.runtime.inflight.slot_program import SlotProgram, place
from rlhf_jax.runtime.program import Program
from rlhf_jax.stages.inflight import loops

from . import rounds, test_adapters
from .rounds import host, same
from .test_inflight_programs import Run, compile_slots, run, through_slots

NUM_ROUNDS, LAG, SLOTS, STEPS, TAU = 6, 2, 7, 1, 2


def make_stream(program: Program, lag: int = LAG) -> Stream:
    """Two updates a round, and slots that no group fills."""
    clock = Clock(NUM_ROUNDS, num_minibatches=2, lag=lag, pinned=True)
    return Stream(clock, program.sampler.shapes.tokens_BC.shape[0], SLOTS, STEPS, TAU)


@pytest.fixture(scope="module")
def program() -> SlotProgram:
    shared = test_adapters.make_program()
    return through_slots(shared, make_stream(shared))


@pytest.fixture(scope="module")
def simulated(program: SlotProgram) -> Run:
    return run(program, make_stream(program), threaded=False)


def test_rows_are_those_of_static_batches_of_the_exact_lag(program, simulated):
    assert len(simulated.samples) == NUM_ROUNDS
    gaps = []
    for round_index, samples in enumerate(simulated.samples):
        version = program.spec.clock.version(round_index)
        assert set(samples.version_BC[samples.mask_BC]) == {version}
        static = host(program.generate(simulated.published[version], round_index, version))
        for name in ("tokens_BC", "mask_BC", "finished_B", "ordinal_B", "sample_index_B"):
            np.testing.assert_array_equal(getattr(samples, name), getattr(static, name), name)
        np.testing.assert_allclose(
            samples.behavior_logprob_BC, static.behavior_logprob_BC, atol=5e-5
        )
        newest = program.generate(simulated.published[2 * round_index], round_index, version)
        gaps.append(np.abs(newest.behavior_logprob_BC - samples.behavior_logprob_BC).max())
    assert max(gaps) > 1e-2, "versions are too near to be told apart"


def test_segments_have_rows_of_several_versions(program, simulated):
    """Otherwise the battery would compare what static batches can do too."""
    del simulated
    stream = make_stream(program)
    (sampler,) = loops.make_sampler(program, stream, Saving(), None).slices
    published, most = program.publish(program.init(program.reference_params)), 0
    while not sampler.is_drained:
        trained = stream.rounds_trained(sampler.state)
        for version in sampler.due(trained):
            sampler.take(published, version)
        sampler.draw(None, trained)
        version_S = np.asarray(sampler.pool.slots.version_S)  # type: ignore[attr-defined]
        most = max(most, len(set(version_S[np.array(sampler.state.row_of_slot) >= 0])))
    assert most >= 2


def test_threads_give_the_numbers_of_the_simulated_loop(program, simulated):
    assert same(run(program, make_stream(program), threaded=True).figures, simulated.figures)


def test_a_checkpoint_has_the_versions_of_running_rows(program, simulated):
    """The simulated loop from the snapshot of round 3: the rest of the run, bitwise."""
    stream, kept = make_stream(program), {}
    saving = Saving(lambda r: r == 3, lambda r, snapshot: kept.update({r: snapshot.arrays()}))

    def follow(states, start, saving, snapshot):
        sampler = loops.make_sampler(program, stream, saving, snapshot)
        begin = partial(place, program=program)
        for event in loop.run(program, sampler, begin, states, start):
            if isinstance(event, synchronous.RoundEnd):
                yield event

    states = program.init(program.reference_params)
    at_three = next(
        jax.tree.map(lambda x: x.copy(), event.states)
        for event in follow(states, 0, saving, None)
        if event.round_index == 2
    )
    names = [name for name in kept[3] if name.startswith("versions.")]
    assert len({name.split(".")[1] for name in names}) == LAG + 1
    *_, last = follow(at_three, 3, Saving(), Cut.of(kept[3]))
    params = {role: state.params for role, state in last.states.items()}
    assert same(host(params), simulated.params)


def test_versions_add_no_program_on_one_device_and_on_two(compiled):
    """Admissions, an insertion, a segment, and slots without rows, at any lag; nothing is compiled
    when versions come and go. Two shards of rows draw the tokens of one.
    """
    rounds_of = {}
    for shape, lag, num_admissions in (((1, 1, 1), 0, 2), ((1, 1, 1), 1, 2), ((2, 1, 1), 1, 1)):
        shared = test_adapters.make_program(shape)
        stream = dataclasses.replace(make_stream(shared, lag), num_slots=8)
        small = through_slots(shared, stream)
        first = small.publish(small.init(small.reference_params))
        published = [first, jax.tree.map(lambda x: x * 1.5, first)]
        compiled.clear()
        compile_slots(small)
        assert len(compiled) == num_admissions + 1 + 1 + 1
        compiled.clear()
        (sampler,) = loops.make_sampler(small, stream, Saving(), None).slices
        while not sampler.is_drained:
            trained = stream.rounds_trained(sampler.state)
            for version in sampler.due(trained):
                sampler.take(published[version % 2], version)
            for round_index in sampler.draw(None, trained):
                drawn = rounds_of.setdefault((shape, lag), {})
                drawn[round_index] = sampler.rows.samples(round_index)
        assert not compiled
    one, two = rounds_of[(1, 1, 1), 1], rounds_of[(2, 1, 1), 1]
    for round_index, samples in one.items():
        np.testing.assert_array_equal(samples.tokens_BC, two[round_index].tokens_BC)
        np.testing.assert_allclose(
            samples.behavior_logprob_BC, two[round_index].behavior_logprob_BC, atol=5e-5
        )
    assert not all(same(one[r], rounds_of[(1, 1, 1), 0][r]) for r in one), "versions are alike"


def test_the_base_is_shared_and_no_version_is_copied(program, simulated):
    base = program.reference_params.base
    (sampler,) = loops.make_sampler(program, make_stream(program), Saving(), None).slices
    for version in range(4):
        sampler.take(simulated.published[2 * version], version)
    assert sampler.held is not None
    read = sampler.pool._whole(sampler.held.params)  # type: ignore[attr-defined]
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (read.base, base)), strict=True))
    for place_of_it, version in enumerate((3, 1, 2)):
        leaves = map(
            jax.tree.leaves, (read.adapters[place_of_it], simulated.published[2 * version])
        )
        assert all(x is y for x, y in zip(*leaves, strict=True))


def test_versions_are_counted_in_memory(program, monkeypatch):
    """Lag 2 in threads: 3 versions that draw, 3 that wait, and 3 side by side in a program."""
    (adapter,) = program.sampler.version_bytes()
    (size,) = adapter.values()
    found = {}

    def noted(states, versions, num_live, free, slots, rounds):
        found.update(versions=versions, num_live=num_live, slots=slots, rounds=rounds)

    monkeypatch.setattr(memory, "check", noted)
    program.check_memory(asynchronous=True)
    assert found["num_live"] == 6
    (of_slots,) = program.slots[0].slot_bytes().values()
    assert list(found["slots"].values()) == [of_slots + 3 * size]
    assert found["rounds"][0] == 1  # rows wait on the host


def test_all_params_are_refused_by_name():
    shared = rounds.make_program()
    with pytest.raises(Refusal, match=r"rlhf.weights is 'pinned' with lora.rank=0"):
        through_slots(shared, make_stream(shared))
    assert adapters.split(shared.reference_params)[1] is None
