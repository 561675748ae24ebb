"""A program of integers in the place of arrays: params are a hash of all that made them, so that a
loop can be run thousands of times and any difference in what was trained on what, in which order,
shows in the last params.
"""

import dataclasses
import random
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.clock import Clock, choice, live
from rlhf_jax.runtime import synchronous
from rlhf_jax.runtime.groups.selection import Selection
from rlhf_jax.types import Mean

NUM_GROUPS, KEY = 6, jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class FakeSamples:
    round_index: int
    version: int
    params: int

    mask_BC = np.ones((1, 1), bool)

    @property
    def version_BC(self):
        return np.full((1, 1), self.version, np.int32)


@dataclasses.dataclass(frozen=True)
class FakeComposed:
    """Groups that were chosen from sampled rounds: (the round, the group in it)."""

    round_index: int
    groups: tuple[tuple[FakeSamples, int], ...]

    @property
    def mask_BC(self):
        return np.ones((len(self.groups), 1), bool)

    @property
    def version_BC(self):
        return np.array([[samples.version] for samples, _ in self.groups], np.int32)


@dataclasses.dataclass(frozen=True)
class FakeBatch:
    samples: FakeSamples | FakeComposed
    params: int
    part: int = 0
    sample_R: None = None


class FakeProgram:
    """The calls of `Program`; `delay(call, round)` gives the seconds that each takes."""

    critic_is_disaggregated = False

    def __init__(self, clock: Clock, delay=lambda call, round_index: 0.0, oversample: int = 1):
        self.spec = SimpleNamespace(clock=clock, oversample=oversample)
        self.asked: list[int] = []
        self.delay = delay
        self.published: dict[int, int] = {}
        self.generated: list[tuple[int, int]] = []

    def publish(self, states):
        version, params = states
        assert version not in self.published, "a version is published once"
        self.published[version] = params
        return params

    def generate(self, params, round_index, version):
        assert self.published[version] == params, (
            "params that are not the version that they are said to be"
        )
        self.generated.append((round_index, version))
        time.sleep(self.delay("generate", round_index))
        return FakeSamples(round_index, version, params)

    def select(self, samples):
        """A group is live by its round and params."""
        self.asked.append(samples.round_index)
        random_of_group = random.Random(f"{samples.round_index} {samples.params}")
        num_sampled = self.spec.oversample * NUM_GROUPS
        is_live_N = np.array([random_of_group.random() < 0.4 for _ in range(num_sampled)])
        kept = live.keep(is_live_N, NUM_GROUPS)
        return Selection(np.zeros(0), kept, samples.round_index * num_sampled)

    def compose(self, rounds, round_index, selections=()):
        clock, num_sampled = self.spec.clock, self.spec.oversample * NUM_GROUPS
        assert [each.round_index for each in rounds] == list(clock.sources(round_index))
        groups = np.arange(NUM_GROUPS)
        if clock.composes:
            groups = choice.chosen(clock, NUM_GROUPS, KEY, round_index)
        selection = None
        if selections:
            kept = [each.kept.group_P for each in selections]
            groups = choice.within_sampled(groups, kept, num_sampled)
            selection = selections[round_index - clock.sources(round_index).start]
        chosen = tuple(
            (rounds[group // num_sampled], group % num_sampled) for group in groups.tolist()
        )
        return FakeComposed(round_index, chosen), selection

    def score(self, states, samples, given=None):
        return SimpleNamespace(score_B=np.zeros(1)), FakeBatch(samples, states[1])

    def minibatch(self, batch, round_index, update):
        assert batch.samples.round_index == round_index
        return dataclasses.replace(batch, part=update)

    def update(self, states, batch):
        version, params = states
        if not batch.part:
            time.sleep(self.delay("update", batch.samples.round_index))
        metrics = {"loss": Mean(jnp.float32(params % 1000), jnp.float32(1.0))}
        return (version + 1, hash((params, batch.samples, batch.params, batch.part))), metrics


def jitter(seed: int, scale: float = 0.0012):
    """Delays from a seeded distribution, in which one side may be the slower: a function of call
    and round alone.
    """
    rates = random.Random(seed)
    mean = {"generate": rates.uniform(0, scale), "update": rates.uniform(0, scale)}
    return lambda call, round_index: (
        mean[call] * random.Random(f"{seed} {call} {round_index}").expovariate(1.0)
    )


def finish(
    loop, program: FakeProgram, start_round: int = 0, states=(0, 1), pending=None, **options
):
    """Runs to the end: what each round was sampled with, the ages of each update, and the last
    states.
    """
    versions, ages, announced = {}, [], []
    for event in loop.run(program, states, start_round, dict(pending or {}), **options):
        match event:
            case synchronous.Sampled(index, _):
                announced.append(index)
            case synchronous.Scored(index, samples):
                versions[index] = int(samples.version_BC.max())
            case synchronous.Updated(_, age):
                ages.append(age)
            case synchronous.RoundEnd():
                states = event.states
    return versions, ages, announced, states
