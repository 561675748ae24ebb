"""The dataflow of a round, derived from the algorithm: its calls in the order of dispatch, and what each one waits for.

    generate ──samples──▶ reference, proximal, value, reward ──scores──▶ train_policy, train_critic
    train_policy ──params, lag + 1 rounds later──▶ generate          train_X ──params, 1 round later──▶ value, proximal

ReaL (arXiv 2406.14088) has the same graph without a lag. A host reward is no call: it takes no device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.devices.placement import ROLES
from rlhf_jax.planner.api import Loop
from rlhf_jax.refusal import Refusal
from rlhf_jax.types import Algorithm, Call

What = Literal["data", "params", "state", "order"]
SCORES = {  # in the order in which a round dispatches them: what each says of the samples
    "reference": "reference_logprob",
    "proximal": "proximal_logprob",
    "value": "value",
    "reward": "reward",
}
TRAINED = ("policy", "critic")


@dataclass(frozen=True)
class Edge:
    """`target` of round r waits for `source` of round r - `rounds_apart`.

    `what`: "data" that the source produces (`name` says which), "params" that the source has updated and the target runs
    with, the "state" of a role, or "order" alone: the loop does not come to the target before the source has ended.
    """

    source: str
    target: str
    rounds_apart: int
    what: What
    name: str


def dataflow(algorithm: Algorithm, model_reward: bool) -> tuple[Call, ...]:
    """The calls of a round, in the order of dispatch.

    Args:
      model_reward: whether the reward is a model, and so a call; a reward on decoded text is not.
    """
    scores = [name for name in SCORES if name in algorithm.needs or (name == "reward" and model_reward)]
    calls = [Call("generate", "policy", "generate", ("prompts",), ("samples",))]
    calls += [Call(name, ROLES[name], "infer", ("samples",), (SCORES[name],)) for name in scores]
    consumes = ("samples", *(SCORES[name] for name in scores))
    trained = [role for role in TRAINED if role in algorithm.losses]
    calls += [Call(f"train_{role}", role, "train", consumes, (f"{role}_params",)) for role in trained]
    return tuple(calls)


def edges(calls: Sequence[Call], lag: int, loop: Loop) -> list[Edge]:
    """What every call waits for, in its own round and in earlier ones.

    The synchronous loop samples round r + lag and waits for it before it scores and trains round r; it begins that when the
    policy's updates of round r - 1 are found finite. In the asynchronous loop a trainer scores and trains the rounds in
    order, each when the version before it is published, and at most lag + 1 rounds are issued and not yet trained.

    Raises Refusal for a negative lag.
    """
    if lag < 0:
        raise Refusal(f"lag is {lag}; accepted: 0 or more")
    found = [
        Edge(source.name, target.name, 0, "data", name)
        for source in calls
        for name in source.produces
        for target in calls
        if name in target.consumes
    ]
    trains = {call.role: call.name for call in calls if call.kind == "train"}
    for call in calls:
        if call.kind == "train":
            found.append(Edge(call.name, call.name, 1, "state", call.role))
        elif call.role in trains:
            apart = lag + 1 if call.kind == "generate" else 1
            found.append(Edge(trains[call.role], call.name, apart, "params", call.role))
    return found + _order(calls, lag, loop, trains["policy"])


def _order(calls: Sequence[Call], lag: int, loop: Loop, train_policy: str) -> list[Edge]:
    generate = next(call.name for call in calls if call.kind == "generate")
    others = [call.name for call in calls if call.kind != "generate"]
    found = [Edge(generate, generate, 1, "order", "sampler")]
    found += [Edge(train_policy, name, 1, "order", "trainer") for name in others]
    if loop == "synchronous" and lag:
        found += [Edge(generate, name, -lag, "order", "loop") for name in others]
    return found
