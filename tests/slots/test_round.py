"""A round through the slots has the static sampler's samples, on every family."""

import numpy as np
import pytest

from rlhf_jax.models.common.family import find
from rlhf_jax.runtime.inflight.pool import SlotPool
from rlhf_jax.runtime.inflight.round import sample_round
from tests import tiny
from tests.models.families import SUBJECTS, config_of, random_params

from .pools import check_same, make_pool, static

ENDS = (1, 4, 7)


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
    np.testing.assert_array_equal(found.version_BC, np.where(found.mask_BC, 5, 0))
    if num_slots < 12:
        assert int(pool.slots.step) > tiny.C, "the ring should wrap"


def test_the_last_rows_of_a_round_go_on_in_fewer_slots(monkeypatch):
    """8 slots, then 2: two rounds, so that nothing is left of the first in the second."""
    model = tiny.make_model(num_layers=1)
    params = tiny.make_params(model)
    pool, sizes, quarter = make_pool(model, 8, 1, num_compactions=1), [], SlotPool.quarter

    def noted(pool: SlotPool):
        moved = quarter(pool)
        sizes.append(moved and moved[0].config.num_slots)
        return moved

    monkeypatch.setattr(SlotPool, "quarter", noted)
    for round_index in (0, 1):
        found = sample_round(pool, params, round_index, 0)
        check_same(found, static(model, params, round_index))
        assert bool(pool.slots.done_S.all())
        assert not pool.slots.fresh_S.any()
    assert sizes.count(2) == 2
    assert None in sizes


def check_family(name: str) -> None:
    """Windows of 3, caps, grouped heads, several tokens that end a row."""
    model = find(name).make(config_of(name))
    params = random_params(model, 0)
    found = sample_round(make_pool(model, 5, 4, 2.0, eos_id=ENDS), params, 1, 0)
    expected = static(model, params, 1, 2.0, ENDS)
    lengths = np.asarray(expected.mask_BC).sum(axis=1)
    assert len(set(lengths.tolist())) > 2, "rows should end at several places"
    assert lengths.max() > 3, "a window should end within a row"
    check_same(found, expected)


def test_windows_and_caps_are_sampled_alike():
    check_family("gemma2")


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_family_is_sampled_alike(name):
    check_family(name)
