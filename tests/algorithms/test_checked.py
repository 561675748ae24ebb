"""Losses of an algorithm of one's own that raise, or give what training cannot use: one line that
names algorithm and role.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms.common.checked import checked
from rlhf_jax.refusal import ComponentError

from .checks import assert_trees_equal, example
from .leave_one_out import leave_one_out


def raises(outputs, batch):
    raise RuntimeError("boom")


WRONG = [
    (
        lambda outputs: 0.0,
        r"raised in the loss of the policy: TypeError: .*takes 1 positional argument but 2 were "
        r"given",
    ),
    (
        raises,
        r"raised in the loss of the policy: RuntimeError: boom \(.*test_checked\.py, line \d+\)",
    ),
    (
        lambda outputs, batch: outputs.logprob_RC.sum(),
        r"gave a \w+; accepted: a pair \(loss, metrics\)",
    ),
    (
        lambda outputs, batch: (outputs.logprob_RC.sum(1), {}),
        r"the loss of the policy has the shape \(\d+,\); accepted: one number, a sum over rows",
    ),
    (
        lambda outputs, batch: (outputs.logprob_RC.sum(), [1]),
        "the metrics of the policy are a list; accepted: metrics by name",
    ),
    (
        lambda outputs, batch: (outputs.logprob_RC.sum(), {"a": 1.0}),
        "the metric 'a' of the policy is a float; accepted: Mean, Max",
    ),
]


@pytest.mark.parametrize(("loss", "message"), WRONG)
def test_a_wrong_loss_is_named(loss, message):
    _, _, batch, outputs = example(leave_one_out())
    wrong = checked(replace(leave_one_out(), losses={"policy": loss}))
    with pytest.raises(
        ComponentError, match=rf"^the algorithm leave_one_out:? .*{message}"
    ) as raised:
        jax.eval_shape(jax.value_and_grad(wrong.losses["policy"], has_aux=True), outputs, batch)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("losses", "listed"),
    [
        ({}, "no role"),
        ({"critic": None}, "critic"),
        ({"policy": None, "judge": None}, "policy, judge"),
    ],
)
def test_roles_are_policy_and_critic(losses, listed):
    with pytest.raises(
        ComponentError, match=f"has losses of {listed}; accepted: policy, or policy and critic"
    ):
        checked(replace(leave_one_out(), losses=losses))


def test_a_right_loss_is_what_it_was():
    """The same numbers, and the same compiled program."""
    _, _, batch, outputs = example(leave_one_out())
    one, other = leave_one_out().losses["policy"], checked(leave_one_out()).losses["policy"]
    assert_trees_equal(one(outputs, batch), other(outputs, batch))
    assert str(jax.make_jaxpr(one)(outputs, batch)) == str(jax.make_jaxpr(other)(outputs, batch))
    assert np.isfinite(jnp.asarray(one(outputs, batch)[0]))
