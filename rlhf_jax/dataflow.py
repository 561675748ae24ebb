"""The dataflow of a round, derived once from the algorithm: its calls in the order of dispatch, and
their edges.

    generate ──samples──▶ reference, proximal, value, reward ──scores──▶ train_policy, train_critic
    train_policy ──params, lag + 1 rounds later──▶ generate          train_X ──params, 1 round later──▶ value, proximal

The runtime compiles and executes these calls, the planner costs them, and a plan places them by
name. A new score is one entry of `SCORES`: nothing else lists the scores. ReaL (arXiv 2406.14088)
has the same graph without a lag. A reward on decoded text is no call, because it occupies no
device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_jax import scoring
from rlhf_jax.algorithms.api import REFERENCE_SCORES, STORED_SCORE
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.api import ModelReward
from rlhf_jax.types import Algorithm, Array, Params, Samples

Kind = Literal["generate", "infer", "train"]
Loop = Literal["synchronous", "asynchronous"]
What = Literal["data", "params", "state", "order"]
GENERATE, REWARD = "generate", "reward"
TRAINED = ("policy", "critic")
TRAIN_CALLS = {f"train_{role}": role for role in TRAINED}
"""The training call of each role that an algorithm can train."""
ON_SAMPLED = (GENERATE, REWARD)
"""Calls on every prompt that a round samples. The others are on those that it keeps: see
`rlhf_jax/clock/live.py`.
"""


@dataclass(frozen=True)
class Call:
    """A node of the dataflow: a role's model used once per round.

    `per_token`: an inference call gives a number for each completion token. False: one for each
    sample, from the whole row.
    """

    name: str
    role: str
    kind: Kind
    consumes: tuple[str, ...]
    produces: tuple[str, ...]
    per_token: bool = True


@dataclass(frozen=True)
class Edge:
    """`target` of round r waits for `source` of round r - `rounds_apart`.

    `what`: "data" that the source produces (`name` says which), "params" that the source has
    updated and the target runs with, the "state" of a role, or "order" alone: the loop does not
    come to the target before the source has ended.
    """

    source: str
    target: str
    rounds_apart: int
    what: What
    name: str


@dataclass(frozen=True)
class Score:
    """One score of a round's samples: an inference call, its function, and the destination of its
    output.

    Attributes:
      role: the role whose params the function gets. The runtime has "policy", "reference",
        "critic", "reward", and those of `ProgramSpec.frozen`.
      output: name and shape of the output, "..._BC" (a number per token) or "..._B" (a number per
        sample). It becomes the field of that name of `Scores`, or else an entry of `Scores.extra`,
        whose mean is a metric of every round.
      function: `(params, samples, *, model) -> Array` of that shape, float32; `model` is the
        role's.
      when: whether a round has this score, given the algorithm and whether the reward is learned.
        By default it has the score if the algorithm needs it by name.
    """

    role: str
    output: str
    function: Callable[..., Array]
    when: Callable[[Algorithm, bool], bool] | None = None

    @property
    def product(self) -> str:
        """The output's name without its shape."""
        return self.output.rpartition("_")[0]

    @property
    def shape(self) -> str:
        """The output's shape letters: "BC" or "B"."""
        return self.output.rpartition("_")[2]

    def is_in(self, name: str, algorithm: Algorithm, learned_reward: bool) -> bool:
        """Returns whether a round of the algorithm has this score.

        Args:
          name: of the score, a key of `SCORES`.
          algorithm: of the run.
          learned_reward: the run's reward has a model.
        """
        return (
            name in algorithm.needs if self.when is None else self.when(algorithm, learned_reward)
        )


def raw_reward(params: Params, samples: Samples, *, model: ModelReward) -> Array:
    """Raw scores of a learned reward, float32 `[B]`.

    Args:
      params: of the reward model.
      samples: B rows.
      model: the reward, as `rewards.learned.make` returns it.
    """
    return model(params, samples)


SCORES = {
    "reference": Score("reference", "reference_logprob_BC", scoring.sample_logprobs),
    "proximal": Score("policy", "proximal_logprob_BC", scoring.sample_logprobs),
    "value": Score("critic", "value_BC", scoring.sample_values),
    "gradient_energy": Score("policy", "gradient_energy_BC", scoring.sample_gradient_energy),
    REWARD: Score(
        "reward", "reward_B", raw_reward, when=lambda algorithm, learned_reward: learned_reward
    ),
}
"""Scores by the name of their call, in the order in which a round dispatches them. The output of
`reward` is the raw score of a learned reward: `Scores.raw_B`, or one term of it where the reward is
a sum.
"""

STORED = {REFERENCE_SCORES: STORED_SCORE}
"""What an algorithm may need beside scores, and its entry of `Scores.extra`: scores of samples of the
reference policy, which the stage `prompt_values` stored for each prompt. A round looks them up by the
ordinals of its prompts, and no call computes them.
"""


def roles() -> dict[str, str]:
    """Returns the role of every call that a plan can name, whatever the algorithm."""
    return {GENERATE: "policy"} | {name: score.role for name, score in SCORES.items()} | TRAIN_CALLS


def calls_of(algorithm: Algorithm, learned_reward: bool) -> tuple[Call, ...]:
    """Derives the calls of a round, in the order of dispatch.

    Args:
      algorithm: gives the scores that it needs and the roles that it trains.
      learned_reward: whether the reward is a model, and so a call; a reward on decoded text is not.

    Raises:
      Refusal: the algorithm needs a score that is neither in `SCORES` nor in `STORED`.
    """
    if unknown := sorted(set(algorithm.needs) - SCORES.keys() - STORED.keys()):
        raise Refusal(
            f"the algorithm {algorithm.name} needs {', '.join(unknown)}; accepted: "
            f"{', '.join((*SCORES, *STORED))}"
        )
    scores = {
        name: score
        for name, score in SCORES.items()
        if score.is_in(name, algorithm, learned_reward)
    }
    calls = [Call(GENERATE, "policy", "generate", ("prompts",), ("samples",))]
    for name, score in scores.items():
        calls.append(
            Call(
                name,
                score.role,
                "infer",
                ("samples",),
                (score.product,),
                per_token=score.shape == "BC",
            )
        )
    consumes = ("samples", *(score.product for score in scores.values()))
    for name, role in TRAIN_CALLS.items():
        if role in algorithm.losses:
            calls.append(Call(name, role, "train", consumes, (f"{role}_params",)))
    return tuple(calls)


def edges(calls: Sequence[Call], lag: int, loop: Loop) -> list[Edge]:
    """Derives the edges between the calls of a round and of earlier rounds.

    The synchronous loop samples round r + lag and waits for it before it scores and trains round r;
    it scores round r once the policy's updates of round r - 1 are known to be finite. In the asynchronous
    loop a trainer scores and trains the rounds in order, each when the version before it is
    published, and at most lag + 1 rounds are issued and not yet trained.

    Args:
      calls: of a round, as `calls_of` derives them.
      lag: rounds that the sampler is behind.
      loop: the loop whose order of dispatch the "order" edges describe.

    Raises:
      Refusal: the lag is negative.
    """
    if lag < 0:
        raise Refusal(f"lag is {lag}; accepted: 0 or more")
    result = [
        Edge(source.name, target.name, 0, "data", name)
        for source in calls
        for name in source.produces
        for target in calls
        if name in target.consumes
    ]
    trains = {call.role: call.name for call in calls if call.kind == "train"}
    for call in calls:
        if call.kind == "train":
            result.append(Edge(call.name, call.name, 1, "state", call.role))
        elif call.role in trains:
            rounds_apart = lag + 1 if call.kind == "generate" else 1
            result.append(Edge(trains[call.role], call.name, rounds_apart, "params", call.role))
    return result + _order(calls, lag, loop, trains["policy"])


def _order(calls: Sequence[Call], lag: int, loop: Loop, train_policy: str) -> list[Edge]:
    generate = next(call.name for call in calls if call.kind == "generate")
    others = [call.name for call in calls if call.kind != "generate"]
    result = [Edge(generate, generate, 1, "order", "sampler")]
    result += [Edge(train_policy, name, 1, "order", "trainer") for name in others]
    if loop == "synchronous" and lag:
        result += [Edge(generate, name, -lag, "order", "loop") for name in others]
    return result
