"""The dataflow is what each algorithm needs and trains; edges say what waits for what, for any lag
and both loops.
"""

import pytest

from rlhf_jax import registry
from rlhf_jax.algorithms import ppo
from rlhf_jax.dataflow import STORED, calls_of, edges
from rlhf_jax.ops.corrections import Correction
from tests.planner.tables import ONLINE_DPO, PPO


def found(edges_of, **wanted):
    """Pairs of calls and rounds apart of the edges with the given fields."""
    return {
        (edge.source, edge.target, edge.rounds_apart)
        for edge in edges_of
        if all(getattr(edge, name) == value for name, value in wanted.items())
    }


def test_ppo_has_six_calls_of_four_roles():
    assert [(call.name, call.role, call.kind) for call in PPO] == [
        ("generate", "policy", "generate"),
        ("reference", "reference", "infer"),
        ("value", "critic", "infer"),
        ("reward", "reward", "infer"),
        ("train_policy", "policy", "train"),
        ("train_critic", "critic", "train"),
    ]
    assert PPO[4].consumes == PPO[5].consumes == ("samples", "reference_logprob", "value", "reward")


def test_a_host_reward_is_no_call_and_a_correction_needs_the_proximal_policy():
    config = ppo.Config(correction=Correction(ratio_to="proximal", correction="none"))
    calls = calls_of(ppo.ppo(config), learned_reward=False)
    names = ["generate", "reference", "proximal", "value", "train_policy", "train_critic"]
    assert [call.name for call in calls] == names
    assert calls[2].role == "policy"
    assert ("train_policy", "proximal", 1) in found(edges(calls, 3, "asynchronous"), what="params")


@pytest.mark.parametrize("name", registry.names("algorithms"))
def test_every_algorithm_has_the_calls_it_needs(name):
    module = registry.find("algorithms", name)
    algorithm = getattr(module, name)(module.Config())
    calls = calls_of(algorithm, learned_reward=True)
    scores = {*algorithm.needs, "reward"} - STORED.keys()  # nobody computes what is stored
    assert {call.name for call in calls if call.kind == "infer"} == scores
    assert {call.role for call in calls if call.kind == "train"} == set(algorithm.losses)
    assert calls[0].kind == "generate"
    produced = {product for call in calls for product in call.produces} | {"prompts"}
    assert all(product in produced for call in calls for product in call.consumes)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_params_and_data_edges(lag):
    of_ppo = edges(PPO, lag, "synchronous")
    assert found(of_ppo, what="params") == {
        ("train_policy", "generate", lag + 1),
        ("train_critic", "value", 1),
    }
    assert found(of_ppo, what="state") == {
        ("train_policy", "train_policy", 1),
        ("train_critic", "train_critic", 1),
    }
    scores = {"reference", "value", "reward"}
    assert found(of_ppo, what="data") == {
        *(("generate", name, 0) for name in {*scores, "train_policy", "train_critic"}),
        *((score, train, 0) for score in scores for train in ("train_policy", "train_critic")),
    }


def test_the_synchronous_loop_samples_before_it_trains():
    others = {call.name for call in ONLINE_DPO} - {"generate"}
    assert found(edges(ONLINE_DPO, 2, "synchronous"), what="order", name="loop") == {
        ("generate", name, -2) for name in others
    }
    assert not found(
        edges(ONLINE_DPO, 0, "synchronous"), what="order", name="loop"
    )  # the data say so
    assert not found(edges(ONLINE_DPO, 2, "asynchronous"), what="order", name="loop")


def test_a_negative_lag_is_refused():
    with pytest.raises(ValueError, match="lag is -1; accepted: 0 or more"):
        edges(PPO, -1, "synchronous")
