"""In-flight updates of real programs, on the real pool of slots: every algorithm, and adapters.

The batteries over settings of the clock are in `test_inflight.py`, on a pool of integers.
"""

import copy
import dataclasses
import time
from functools import partial

import jax
import numpy as np
import pytest

from rlhf_jax import registry, scoring
from rlhf_jax.clock import Clock, Stream
from rlhf_jax.models.common import adapters
from rlhf_jax.ops import versions
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.inflight import loop, threads
from rlhf_jax.runtime.inflight.cuts import Saving
from rlhf_jax.runtime.inflight.slot_program import SlotProgram, place
from rlhf_jax.runtime.program import Program
from rlhf_jax.stages.inflight import loops

from . import test_adapters
from .rounds import algorithm_program, host, same

NUM_ROUNDS, SLOTS, STEPS, TAU = 6, 7, 1, 2
SEGMENT_SECONDS = 0.004  # of the thread: the trainer is then ahead of the clock


def make_stream(program: Program, tau: int = TAU, rebuild_every: int = 0) -> Stream:
    """Lag 1, two updates a round, and slots that no group fills."""
    clock = Clock(NUM_ROUNDS, num_minibatches=2, lag=1, inflight=True)
    num_rows = program.sampler.shapes.tokens_BC.shape[0]
    return Stream(clock, num_rows, SLOTS, STEPS, tau, rebuild_every)


@dataclasses.dataclass
class Run:
    """Everything that a loop has computed, on the host; and the versions that the pool was given."""

    samples: list = dataclasses.field(default_factory=list)
    scores: list = dataclasses.field(default_factory=list)
    busy: list = dataclasses.field(default_factory=list)
    metrics: list = dataclasses.field(default_factory=list)
    params: dict = dataclasses.field(default_factory=dict)
    published: dict = dataclasses.field(default_factory=dict)

    @property
    def figures(self) -> tuple:
        return self.samples, self.scores, self.busy, self.metrics, self.params

    @property
    def mixed_share(self) -> float:
        """Share of rows with tokens of several versions."""
        return float(np.mean([versions.is_mixed(s.version_BC, s.mask_BC) for s in self.samples]))


def through_slots(program: Program, stream: Stream) -> SlotProgram:
    """Another program's calls with the slots of a clock."""
    spec = dataclasses.replace(program.spec, clock=stream.clock)
    sizes = {"num_slots": stream.num_slots, "segment_steps": stream.segment_steps}
    rebuilds = bool(stream.rebuild_every)
    return SlotProgram(spec, program.reference_params, **sizes, drains=False, rebuilds=rebuilds)


def slowed(segment, slice_index: int):
    """A segment that takes longer, each slice's by another time."""

    def slow(params):
        time.sleep(SEGMENT_SECONDS * (1 + slice_index))
        return segment(params)

    return slow


def run(program: SlotProgram, stream: Stream, threaded: bool) -> Run:
    """A whole run, from boundary 0.

    Args:
      program: of the slots.
      stream: the clock.
      threaded: the loop with a sampling thread.
    """
    found, program = Run(), copy.copy(program)
    publish = program.publish

    def noted(states):
        params = publish(states)
        found.published[int(states["policy"].step)] = params
        return params

    program.publish = noted
    sampler = loops.make_sampler(program, stream, Saving(), None)
    for index, each in enumerate(sampler.slices if threaded else ()):
        each.pool.segment = slowed(each.pool.segment, index)  # type: ignore[method-assign]
    begin = threads.run if threaded else loop.run
    states = program.init(program.reference_params)
    for event in begin(program, sampler, partial(place, program=program), states, 0):
        match event:
            case synchronous.Scored(_, samples, scores, figures=figures):
                found.busy.append(figures["slots_busy"])
                found.samples.append(host(samples))
                found.scores.append(host(scores))
            case synchronous.Updated(metrics=metrics):
                found.metrics.append(host(metrics))
            case synchronous.RoundEnd(states=states):
                found.params = host({role: state.params for role, state in states.items()})
    return found


def check_threads(shared: Program, tau: int = TAU) -> Run:
    """Threads give every number of the simulated loop, of a run with enough mixed rows. Returns it."""
    program = through_slots(shared, stream := make_stream(shared, tau))
    simulated = run(program, stream, threaded=False)
    assert len(simulated.samples) == NUM_ROUNDS
    assert simulated.mixed_share >= 0.3
    assert same(run(program, stream, threaded=True).figures, simulated.figures)
    return simulated


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_threads_give_the_numbers_of_the_simulated_loop_of_every_algorithm(name):
    check_threads(algorithm_program(name))


def test_adapters_are_drawn_in_flight_on_one_base():
    """The pool is given adapters alone, and reads the arrays of the base that training reads."""
    program = test_adapters.make_program()
    base, adapter = program.reference_params.base, program.reference_params.adapter
    simulated = check_threads(program)
    assert not same(simulated.params["policy"], host(adapter)), "nothing was trained"
    assert len(simulated.published) > 2
    for params in simulated.published.values():
        assert jax.tree.structure(params) == jax.tree.structure(adapter)
    pool = through_slots(program, make_stream(program)).make_pool()
    read = adapters.base_of(pool._whole(simulated.published[0]))
    assert all(x is y for x, y in zip(*map(jax.tree.leaves, (read, base)), strict=True))


def test_adapters_of_four_roles_are_drawn_in_flight():
    check_threads(test_adapters.make_ppo_program(), tau=1)


def test_a_rebuilt_row_has_the_distribution_of_each_tokens_adapter():
    """Each token's log-probability is that of a forward pass of the version that drew it."""
    shared = test_adapters.make_program()
    stream = make_stream(shared, rebuild_every=1)
    program = through_slots(shared, stream)
    found = run(program, stream, threaded=False)
    assert found.mixed_share >= 0.3
    forced = jax.jit(partial(scoring.sample_logprobs, model=program.spec.model))
    rest, gaps = adapters.split(program.reference_params)[1], []
    for samples in found.samples:
        for version in np.unique(samples.version_BC[samples.mask_BC]):
            drawn_BC = samples.mask_BC & (samples.version_BC == version)
            errors = [
                np.abs(forced(adapters.join(params, rest), samples) - samples.behavior_logprob_BC)
                for params in (found.published[int(version)], found.published[0])
            ]
            assert errors[0][drawn_BC].max() < 1e-4
            gaps.append(errors[1][drawn_BC].max())
    assert max(gaps) > 1e-2, "versions are too near to be told apart"


def compile_slots(program: SlotProgram) -> None:
    jax.clear_caches()  # a test before this one may have compiled some of them
    for function, arguments in program.slot_entries():
        function.lower(*arguments).compile()


def test_nothing_of_the_slots_is_compiled_after_the_beginning_on_one_device_and_on_two(compiled):
    """On 8 slots, which 4 groups of 2 fill. Versions, rebuilds and partly admitted groups compile
    nothing. Two shards of rows draw the tokens of one.
    """
    rounds_of = {}
    for shape, num_admissions in (((1, 1, 1), 2), ((2, 1, 1), 1)):
        shared = test_adapters.make_program(shape)
        stream = dataclasses.replace(make_stream(shared, rebuild_every=1), num_slots=8)
        program = through_slots(shared, stream)
        published = [program.publish(program.init(program.reference_params)) for _ in range(2)]
        compiled.clear()
        compile_slots(program)
        assert len(compiled) == num_admissions + 1 + 1 + 4 + 1, (
            "admissions, insertion, segment, rebuilds, and slots without rows"
        )
        (sampler,) = loops.make_sampler(program, stream, Saving(), None).slices
        compiled.clear()
        rounds_of[shape], is_mixed = [], []
        while not sampler.is_drained:
            trained = stream.rounds_trained(sampler.state)
            for round_index in sampler.draw(published[trained % 2], trained):
                samples = sampler.rows.samples(round_index)
                rounds_of[shape].append(samples)
                is_mixed.append(versions.is_mixed(samples.version_BC, samples.mask_BC))
        assert not compiled
        assert np.mean(is_mixed) >= 0.3
    for one, two in zip(*rounds_of.values(), strict=True):
        np.testing.assert_array_equal(one.tokens_BC, two.tokens_BC)
        np.testing.assert_array_equal(one.version_BC, two.version_BC)
        np.testing.assert_allclose(one.behavior_logprob_BC, two.behavior_logprob_BC, atol=5e-5)


def test_nothing_of_a_drain_is_compiled_after_the_beginning(compiled):
    shared = test_adapters.make_program()
    law = dataclasses.replace(shared.spec.sampling, num_compactions=1)
    spec = dataclasses.replace(shared.spec, sampling=law)
    program = SlotProgram(spec, shared.reference_params, 8, 1)
    params = program.publish(program.init(program.reference_params))
    compiled.clear()
    compile_slots(program)
    assert len(compiled) == 2 + 1 + 2 + 1 + 1, "admissions, insertion, segments, copy, no rows"
    compiled.clear()
    found = program.generate(params, 0, 0)
    assert not compiled
    np.testing.assert_array_equal(found.tokens_BC, shared.generate(params, 0, 0).tokens_BC)
