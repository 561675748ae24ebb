"""A program whose products are in bfloat16: frozen roles are held so, and compute the same bits."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from rlhf_jax.models.common import rounding
from rlhf_jax.planner.costs.measure import filled
from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.program import Program

from . import rounds


@pytest.fixture(scope="module")
def programs():
    """On params in float32, and on held ones."""
    model = tiny.make_model(num_layers=1, dtype="bfloat16")
    spec = dataclasses.replace(rounds.make_spec(tiny.make_mesh((1, 1, 1))), model=model)
    params = tiny.make_params(model)
    return Program(spec, params), Program(spec, rounding.held(model, params))


def test_the_reference_scores_the_same_bits_with_half_the_bytes(programs):
    scores, held_bytes = [], []
    for program in programs:
        score = program.scores["reference"]
        params, shapes = program.arguments("reference")
        scores.append(score.function(params, filled(shapes)))
        held_bytes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    np.testing.assert_array_equal(*scores)
    assert held_bytes[1] < 0.6 * held_bytes[0]  # norms stay in float32


def test_what_is_trained_is_float32_whatever_the_reference_is_held_in(programs):
    whole, held = programs
    assert jax.tree.map(str, whole.state_shapes) == jax.tree.map(str, held.state_shapes)
    states, expected = held.init(whole.reference_params), whole.init(whole.reference_params)
    assert rounds.same(states["policy"].params, expected["policy"].params)
    with pytest.raises(Refusal, match="the policy's first params are bfloat16"):
        held.init(held.reference_params)
