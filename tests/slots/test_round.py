"""A round through the slots has the static sampler's samples, on every family."""

import jax
import numpy as np
import pytest

from rlhf_jax.models.common.family import find
from rlhf_jax.runtime.inflight.round import sample_round
from tests import tiny
from tests.models.families import SUBJECTS, config_of, random_params

from .pools import check_same, make_pool, static

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.mark.parametrize(
    ("num_slots", "segment_steps", "temperature"), [(4, 3, 0.7), (5, 1, 0.0), (13, 9, 0.7)]
)
def test_tokens_are_those_of_the_static_sampler(num_slots, segment_steps, temperature):
    """Two rounds: the second begins anywhere in the ring. With 13 slots some are never used."""
    model = tiny.make_model(num_layers=1)
    params = tiny.make_params(model)
    pool = make_pool(model, num_slots, segment_steps, temperature)
    for round_index in (0, 1):
        found = sample_round(pool, params, round_index, 5)
        check_same(found, static(model, params, round_index, temperature))
        tiny.check_ends(found)
    assert int(found.version) == 5
    if num_slots < 12:
        assert int(pool.slots.step) > tiny.C, "the ring should wrap"


def check_family(name: str) -> None:
    """Windows of 3, caps, grouped heads. Weights are large, so that near-ties are rare."""
    model = find(name).make(config_of(name))
    params = jax.tree.map(lambda x: 2.0 * x if x.ndim > 1 else x, random_params(model, 0))
    found = sample_round(make_pool(model, 5, 4), params, 1, 0)
    expected = static(model, params, 1)
    lengths = np.asarray(expected.mask_BC).sum(axis=1)
    assert lengths.max() == tiny.C
    assert len(set(lengths.tolist())) > 1
    check_same(found, expected)


def test_windows_and_caps_are_sampled_alike():
    check_family("gemma2")


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_family_is_sampled_alike(name):
    check_family(name)
