"""A second trained role: where a critic begins, what an update does to it, and that it is saved
with the policy.
"""

import dataclasses

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import online_dpo
from rlhf_jax.records.checkpoints import Checkpoints, abstract_like
from rlhf_jax.runtime.program import Program

from . import rounds


@pytest.fixture(scope="module")
def program():
    return rounds.make_critic_program()


def scored(program, states):
    """Scores and rows of the first round; its samples are drawn with a compiled call that other
    tests have too.
    """
    return program.score(states, rounds.make_program().generate(program.publish(states), 0, 0))


def test_a_critic_begins_as_the_params_it_is_given(program):
    states = program.init(program.reference_params)
    assert states.keys() == {"policy", "critic"}
    assert rounds.same(states["critic"].params, program.spec.critic.params)
    assert rounds.same(states["policy"].params, program.reference_params)
    assert [int(state.step) for state in states.values()] == [0, 0]


def test_an_update_moves_and_donates_both(program):
    states = program.init(program.reference_params)
    given, before = program.spec.critic.params, rounds.host(program.spec.critic.params)
    scores, batch = scored(program, states)
    assert np.abs(scores.value_BC).max() > 0
    assert not np.any(np.asarray(scores.value_BC)[~np.asarray(batch.mask_RC)])
    updated, metrics = program.update(states, program.minibatch(batch, 0, 0))
    assert [int(state.step) for state in updated.values()] == [1, 1]
    assert all(
        leaf.is_deleted() for state in states.values() for leaf in jax.tree.leaves(state.params)
    )
    assert rounds.same(given, before), "the params that the critic began with are not its own"
    assert not rounds.same(updated["critic"].params["value_head"], before["value_head"])
    assert not rounds.same(
        updated["critic"].params["backbone"]["layer_0"], before["backbone"]["layer_0"]
    )
    assert not rounds.same(updated["policy"].params, program.reference_params)
    figures = {name: metric.value() for name, metric in metrics.items()}
    of_critic = {name for name in figures if name.startswith("critic_")}
    names = ("value", "return", "squared_error", "clip_share", "loss", "grad_norm", "update_norm")
    assert of_critic == {f"critic_{name}" for name in names}
    assert {"loss", "grad_norm", "ratio", "clip_share", "entropy"} <= figures.keys()
    np.testing.assert_allclose(
        figures["critic_loss"], figures["critic_squared_error"] / 2, rtol=1e-5
    )  # at its start
    tokens = np.asarray(batch.return_RC)[np.asarray(batch.mask_RC)]
    np.testing.assert_allclose(figures["critic_return"], tokens.mean(), rtol=1e-4)


def test_a_critic_learns_the_returns_of_a_round(program):
    """Ten updates on one round's returns: the values come closer to them.

    The wrong sign, or no gradient, would not.
    """
    states = program.init(program.reference_params)
    _, batch = scored(program, states)
    errors = []
    for _ in range(10):
        states, metrics = program.update(states, batch)
        errors.append(metrics["critic_squared_error"].value())
    assert errors[-1] < 0.95 * errors[0]


def test_states_are_saved_and_restored_together(program, tmp_path):
    """A restored pair goes on as the one that was not interrupted, moments and all."""
    states = program.init(program.reference_params)
    _, batch = scored(program, states)
    states, _ = program.update(states, batch)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, states)
    checkpoints.wait()
    restored = checkpoints.restore(1, abstract_like(program.state_shapes, program.state_shardings))
    checkpoints.close()
    assert rounds.same(restored, states)
    for _ in range(2):
        states, restored = program.update(states, batch)[0], program.update(restored, batch)[0]
    assert rounds.same(restored, states)


def test_what_an_algorithm_trains_must_be_set_up(program):
    params = program.reference_params
    with pytest.raises(ValueError, match="ppo trains policy, critic; the critic is None"):
        Program(dataclasses.replace(program.spec, critic=None), params)
    pairs = online_dpo.online_dpo(online_dpo.Config())
    with pytest.raises(ValueError, match="online_dpo trains policy; the critic is Critic"):
        Program(dataclasses.replace(program.spec, algorithm=pairs), params)


def test_a_prompt_run_once_or_for_every_row_gives_one_update(program):
    """`share_prompts` changes how long an update takes, and rounding: for both roles, and in
    minibatches.
    """
    apart = Program(
        dataclasses.replace(program.spec, share_prompts=False), program.reference_params
    )
    assert (program.block_rows, apart.block_rows) == (2, 1)
    states = program.init(program.reference_params)
    _, batch = scored(program, states)
    rows = jax.tree.map(np.array, batch)
    expected, metrics = program.update(states, batch)
    found, metrics_apart = apart.update(apart.init(program.reference_params), rows)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
    for name, metric in metrics.items():
        np.testing.assert_allclose(
            metrics_apart[name].value(), metric.value(), rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_minibatches_hold_the_same_rows_whether_prompts_are_shared(program):
    clock = dataclasses.replace(program.spec.clock, num_minibatches=2)
    shared, apart = (rounds.program_of(clock) for _ in range(2))
    batch = scored(program, program.init(program.reference_params))[1]
    for one, share in ((shared, True), (apart, False)):
        one.spec = dataclasses.replace(program.spec, clock=clock, share_prompts=share)
    for update in range(2):
        assert rounds.same(shared.minibatch(batch, 0, update), apart.minibatch(batch, 0, update))
    assert not rounds.same(shared.minibatch(batch, 0, 0), shared.minibatch(batch, 0, 1))
