"""Functions of programs that are made once a process."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.ops import once
from rlhf_jax.updating import OptimizerConfig, make_optimizer
from tests import tiny


def scale(x, *, by):
    return x * by


def test_equal_arguments_give_one_object():
    assert once.bound(scale, by=2) is once.bound(scale, by=2)
    assert once.bound(scale, by=2) is not once.bound(scale, by=3)
    assert once.bound(scale, by=2)(5) == 10


@pytest.mark.parametrize(("one", "other"), [(2, 2.0), (1, True), (0, False)])
def test_numbers_of_other_types_make_other_programs(one, other):
    """They are equal, but traced code computes in another dtype with them."""
    assert one == other
    assert once.bound(scale, by=one) is not once.bound(scale, by=other)


def test_what_cannot_be_hashed_is_made_each_time():
    given = {"not": "frozen"}
    assert once.bound(scale, by=given) is not once.bound(scale, by=given)
    assert once.bound(scale, by=given).keywords == {"by": given}


def test_an_error_of_the_function_is_its_own():
    @once.once
    def broken(argument):
        raise TypeError(f"{argument} is wrong")

    with pytest.raises(TypeError, match="3 is wrong"):
        broken(3)


def test_all_is_forgotten():
    before = once.bound(scale, by=2)
    once.forget()
    assert once.bound(scale, by=2) is not before


def test_a_program_is_traced_once_however_often_it_is_made():
    traced = []

    def double(x, *, model):
        traced.append(model)
        return x * model.width

    for _ in range(3):
        model = tiny.make_model.__wrapped__()  # made anew, and equal
        jax.jit(once.bound(double, model=model))(jnp.ones(3))
    assert len(traced) == 1


def test_equal_settings_have_one_optimizer():
    config = OptimizerConfig(learning_rate=0.1)
    assert make_optimizer(config, 4) is make_optimizer(OptimizerConfig(learning_rate=0.1), 4)
    assert make_optimizer(config, 4) is not make_optimizer(config, 5)
