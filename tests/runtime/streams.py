"""A pool of integers in the place of arrays, for the in-flight loops: tokens, lengths and caches are
hashes of every version that was used, and log-probabilities of the place in the ring too.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Generator
from functools import partial
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.clock import Clock, Stream, run_row
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.inflight import loop, threads
from rlhf_jax.runtime.inflight.api import Drawn, PoolState
from rlhf_jax.runtime.inflight.cuts import Cuts, Saving
from rlhf_jax.runtime.inflight.held import Held, SideBySide
from rlhf_jax.runtime.inflight.one_slice import StreamSampler
from rlhf_jax.runtime.inflight.rows import Rows, prompts_of_slice
from rlhf_jax.runtime.inflight.slices import SlicedSampler
from rlhf_jax.types import Mean, Prompts

PROMPTS, SAMPLES, C, EOS, PAD = 2, 2, 11, 9, 0
B = PROMPTS * SAMPLES
NUM_ROUNDS = 6
MASK = 2**31 - 1


def mixed(*numbers: int) -> int:
    """A hash of integers that is the same in every process."""
    return zlib.crc32(repr(numbers).encode()) & MASK


def pause(seconds: float) -> None:
    if seconds > 0:  # a sleep of 0 s takes a millisecond on a busy machine
        time.sleep(seconds)


def token_of(params: int, row: int, cache: int) -> int:
    """EOS one time in twenty."""
    drawn = mixed(params, row, cache)
    return EOS if drawn % 20 == 0 else 1 + drawn % 8


def after(cache: int, params: int, token: int) -> int:
    """The cache with the keys of one more token, computed under `params`."""
    return mixed(cache, params, token)


def prompts(round_index: int, num_prompts: int = PROMPTS) -> Prompts:
    ordinal_P = np.arange(num_prompts, dtype=np.int32) + round_index * num_prompts
    tokens_PQ = np.stack([ordinal_P % 8, ordinal_P % 7], axis=1).astype(np.int32)
    return Prompts(tokens_PQ, np.ones_like(tokens_PQ, bool), ordinal_P)  # type: ignore[arg-type]


class FakePool:
    """The calls of `Pool`. Its state is arrays of one number a slot, and the tokens of each. Tokens
    depend on the row of the run, not on that of the slice.
    """

    def __init__(self, num_slots, segment_steps, delay=lambda: 0.0, slice_index=0, num_slices=1):
        self.segment_steps, self.delay = segment_steps, delay
        self.run_row = partial(
            run_row, slice_index=slice_index, num_slices=num_slices, samples_per_prompt=SAMPLES
        )
        self.row_S = np.full(num_slots, -1)
        self.place_S = np.zeros(num_slots, int)  # of the row's params among those side by side
        self.count_S = np.zeros(num_slots, int)
        self.tokens_SC = np.zeros((num_slots, C), int)
        self.cache_S = np.zeros(num_slots, int)
        self.step = 0
        self.rebuilt = 0
        self.needs_rebuild = False
        self._first: dict[int, np.float32] = {}

    def _draw(self, params, slot: int) -> np.float32:
        params = self._params_of(params, slot)
        row, place = self.run_row(int(self.row_S[slot])), self.step % C
        token = token_of(params, row, int(self.cache_S[slot]))
        self.tokens_SC[slot, self.count_S[slot]] = token
        self.count_S[slot] += 1
        self.cache_S[slot] = after(int(self.cache_S[slot]), params, token)
        return np.float32(mixed(params, row, int(self.cache_S[slot]), place) / MASK)

    def _params_of(self, params, slot: int) -> int:
        if isinstance(params, SideBySide):
            return int(params.params[self.place_S[slot]])  # type: ignore[arg-type]
        return params

    def _ended(self, slot: int) -> bool:
        count = self.count_S[slot]
        return self.row_S[slot] < 0 or count == C or self.tokens_SC[slot, count - 1] == EOS

    def admit(self, params, rows, slots, places=()):
        assert len(rows) == len(slots)
        assert len(places) == (len(rows) if isinstance(params, SideBySide) else 0)
        self.place_S[list(slots)[: len(places)]] = places
        for row, slot in zip(rows, slots, strict=True):
            assert self._ended(slot), "a slot that is still written is not free"
            self.row_S[slot], self.count_S[slot], self.tokens_SC[slot] = row, 0, 0
            self.cache_S[slot] = mixed(self._params_of(params, slot), self.run_row(row) // SAMPLES)
            self._first[slot] = self._draw(params, slot)

    def segment(self, params):
        assert not self.needs_rebuild
        pause(self.delay())
        num_slots = len(self.row_S)
        shape = self.segment_steps + 1, num_slots
        tokens, logprobs, live = np.zeros(shape, np.int32), np.zeros(shape, np.float32), None
        live = np.zeros(shape, bool)
        for slot, logprob in self._first.items():
            tokens[0, slot], logprobs[0, slot] = self.tokens_SC[slot, 0], logprob
            live[0, slot] = True
        self._first = {}
        for depth in range(1, self.segment_steps + 1):
            running = [slot for slot in range(num_slots) if not self._ended(slot)]
            if not running:
                break
            self.step += 1
            for slot in running:
                logprobs[depth, slot] = self._draw(params, slot)
                tokens[depth, slot] = self.tokens_SC[slot, self.count_S[slot] - 1]
                live[depth, slot] = True
        ended = np.array([self._ended(slot) for slot in range(num_slots)])
        self.row_S[ended] = -1
        return Drawn(tokens, logprobs, live, ended)

    def rebuild(self, params):
        self.needs_rebuild, self.step = False, 0
        for slot in np.flatnonzero(self.row_S >= 0):
            cache = mixed(params, self.run_row(int(self.row_S[slot])) // SAMPLES)
            for token in self.tokens_SC[slot, : self.count_S[slot]]:
                cache = after(cache, params, int(token))
            self.rebuilt += cache != self.cache_S[slot]
            self.cache_S[slot] = cache

    def saved(self, keeps_cache) -> PoolState:
        names = ["row_S", "place_S", "count_S", "tokens_SC", *(["cache_S"] if keeps_cache else [])]
        arrays = {name: getattr(self, name).copy() for name in names}
        return arrays | ({"step": np.array(self.step)} if keeps_cache else {})

    def restore(self, state):
        for name in ("row_S", "place_S", "count_S", "tokens_SC"):
            setattr(self, name, np.array(state[name]))
        self.needs_rebuild = "cache_S" not in state
        self.cache_S = np.array(state.get("cache_S", np.zeros_like(self.row_S)))
        self.step = int(state.get("step", 0))


@dataclasses.dataclass(frozen=True)
class FakeBatch:
    round_index: int
    digest: int
    update: int = 0
    sample_R: None = None


class FakeProgram:
    """The calls of `Program` that the loops use; states are (version, params)."""

    critic_is_disaggregated = False

    def __init__(self, stream: Stream, delay=lambda: 0.0):
        self.spec, self.delay = SimpleNamespace(clock=stream.clock), delay
        self.num_slices = stream.num_slices
        self.num_prompts = stream.rows_per_round * stream.num_slices // SAMPLES

    def publish(self, states):
        return states[1] if self.num_slices == 1 else (states[1],) * self.num_slices

    def score(self, states, samples, given=None):
        pause(self.delay())
        scores = SimpleNamespace(score_B=np.zeros(1))
        round_index = int(samples.ordinal_B[0]) // self.num_prompts
        assert (
            samples.ordinal_B.tolist()
            == np.repeat(
                np.arange(self.num_prompts) + round_index * self.num_prompts, SAMPLES
            ).tolist()
        ), "rows are in the order of the prompts"
        return scores, FakeBatch(round_index, digest_of(samples))

    def minibatch(self, batch, round_index, update):
        assert batch.round_index == round_index
        return dataclasses.replace(batch, update=update)

    def update(self, states, batch):
        version, params = states
        metrics = {"loss": Mean(jnp.float32(params % 1000), jnp.float32(1.0))}
        return (version + 1, mixed(params, batch.digest, batch.update)), metrics


def digest_of(samples) -> int:
    """A hash of everything that was drawn and by which version."""
    names = "tokens_BC mask_BC behavior_logprob_BC version_BC finished_B ordinal_B sample_index_B"
    return mixed(*(zlib.crc32(getattr(samples, name).tobytes()) for name in names.split()))


def make_stream(
    lag=1, tau=0, rebuild_every=0, slots=3, steps=2, updates=1, pinned=False, **changes
) -> Stream:
    clock = Clock(NUM_ROUNDS, num_minibatches=updates, lag=lag, inflight=not pinned, pinned=pinned)
    return Stream(clock, B, slots, steps, tau, rebuild_every, **changes)


def make_sampler(stream: Stream, delay=lambda: 0.0, saving=None, cut=None) -> SlicedSampler:
    """`delay` may be one function for all slices, or one for each."""
    num_slices, cuts, slices = stream.num_slices, Cuts(saving or Saving(), stream, SAMPLES), []
    delays = delay if isinstance(delay, list | tuple) else [delay] * num_slices
    of_round = partial(prompts, num_prompts=stream.rows_per_round * num_slices // SAMPLES)
    for index in range(num_slices):
        sizes = stream.num_slots, stream.segment_steps
        pool = FakePool(*sizes, delays[index], index, num_slices)
        mine, num_rows = prompts_of_slice(of_round, index, num_slices), stream.rows_per_round
        rows = Rows(mine, num_rows, C, SAMPLES, 1.0, (EOS,), PAD)
        held, snapshot = None, cut and cut.slices[index]
        if stream.clock.pinned:
            held = Held(stream.clock.lag + 1, jax.ShapeDtypeStruct((), np.int32))  # type: ignore[arg-type]
        slices.append(StreamSampler(stream, pool, rows, cuts.of(index), snapshot, held=held))
    return SlicedSampler(slices, cuts)


@dataclasses.dataclass
class Trained:
    """What a loop did, by round."""

    samples: dict = dataclasses.field(default_factory=dict)
    states: dict = dataclasses.field(default_factory=dict)  # after each round
    ages: list = dataclasses.field(default_factory=list)
    sampled: list = dataclasses.field(default_factory=list)
    figures: dict = dataclasses.field(default_factory=dict)
    recorded: tuple = ()

    @property
    def digests(self) -> dict:
        return {r: digest_of(samples) for r, samples in self.samples.items()}

    @property
    def mixed_rows(self) -> float:
        """Share of rows with tokens of several versions."""
        shares = [
            [len(set(v[m])) > 1 for v, m in zip(s.version_BC, s.mask_BC, strict=True)]
            for s in self.samples.values()
        ]
        return float(np.mean(shares))


def follow(events, trained: Trained):
    """Notes the events of a loop, one by one."""
    for event in events:
        match event:
            case synchronous.Sampled(index, _):
                trained.sampled.append(index)
            case synchronous.Scored(index, samples, figures=figures):
                trained.samples[index] = samples
                trained.figures[index] = dict(figures)
            case synchronous.Updated(_, age):
                trained.ages.append(age)
            case synchronous.RoundEnd(index, states):
                trained.states[index] = states
        yield event


def begin(stream, threaded=False, sampler_delay=None, trainer_delay=None, start=None, **options):
    """The events of a run, and its sampler. `start`: (round, states, cut)."""
    round_index, states, cut = start or (0, (0, 1), None)
    saving, monitor = options.pop("saving", None), options.pop("monitor", None)
    sampler = make_sampler(stream, sampler_delay or (lambda: 0.0), saving, cut)
    program = FakeProgram(stream, trainer_delay or (lambda: 0.0))
    run = cast("Callable[..., Generator[synchronous.Event]]", threads.run if threaded else loop.run)
    arguments = program, sampler, lambda samples: samples, states, round_index, monitor
    return run(*arguments, **options), sampler


def finish(stream, threaded=False, **options) -> Trained:
    """Runs to the end."""
    trained = Trained()
    events, sampler = begin(stream, threaded, **options)
    for _ in follow(events, trained):
        pass
    trained.recorded = sampler.recorded
    return trained
