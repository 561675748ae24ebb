"""Sampled rounds on disk: what is kept for which checkpoint, and what a damaged file is told by."""

import numpy as np
import pytest

from rlhf_jax.clock import Clock
from rlhf_jax.records.checkpoints import Damaged
from rlhf_jax.records.saved_rounds import SavedRounds
from tests import tiny


@pytest.fixture
def saved_rounds(tmp_path):
    return SavedRounds(tmp_path / "rounds")


def rounds_on_disk(saved_rounds):
    return sorted(int(path.stem) for path in saved_rounds.directory.iterdir())


def fill(saved_rounds, rounds):
    for r in rounds:
        saved_rounds.path(r).touch()


@pytest.mark.parametrize(
    ("clock", "steps", "next_round", "kept"),
    [
        (Clock(20, lag=2), [4, 8, 12], 12, [4, 5, 8, 9, 12, 13, 14]),
        (Clock(20, lag=0), [4, 8], 8, [8, 9, 10, 11, 12, 13, 14]),
        (Clock(20, 2, 1, lag=1), [8, 16], 8, [4, 8, 9, 10, 11, 12, 13, 14]),
        (Clock(20, buffer_rounds=3), [4, 8], 8, [2, 3, 6, 7]),
        (Clock(20, sync_every=5, staged="shuffled"), [3, 7], 7, [0, 1, 2, 3, 4, 5, 6]),
        (Clock(20, lag=1, sync_every=4), [4, 8], 8, [4, 8]),
        (Clock(20, lag=2, bounded=True), [8, 12], 12, [8, 9, 10, 12, 13, 14]),
        (
            Clock(15, version_schedule=(0, 0, 0, *range(12))),
            [4, 8],
            8,
            [4, 5, 6, 8, 9, 10, 11, 12, 13, 14],
        ),
    ],
)
def test_every_checkpoint_keeps_its_rounds(saved_rounds, clock, steps, next_round, kept):
    """Rounds that were sampled before a checkpoint and trained on after it, and those that are not
    trained on yet.
    """
    fill(saved_rounds, range(15))
    saved_rounds.keep_for(clock, steps, next_round)
    expected = [r for r in range(15) if r in kept or r >= next_round]
    assert rounds_on_disk(saved_rounds) == expected
    for step in steps:
        assert saved_rounds.has(
            [r for r in clock.issued_before(step // clock.updates_per_round) if r < 15]
        )


def test_what_a_kill_left_half_written_is_removed(saved_rounds):
    fill(saved_rounds, [3])
    saved_rounds.path(4).with_suffix(".partial").touch()
    saved_rounds.keep_for(Clock(20, lag=2), [2], 3)
    assert rounds_on_disk(saved_rounds) == [3]


def test_work_does_not_grow_with_the_rounds_that_are_left(saved_rounds, monkeypatch):
    """It is done after every round."""
    clock, names = Clock(50_000, lag=2), []
    path = saved_rounds.path
    monkeypatch.setattr(saved_rounds, "path", lambda r: names.append(r) or path(r))
    saved_rounds.keep_for(clock, [8], 12)
    assert len(names) < 10


def draw():
    return tiny.draw(tiny.make_model(), tiny.law(), tiny.make_prompts())


def as_it_is(samples):
    return tiny.jax.tree.map(
        lambda x: tiny.jax.sharding.SingleDeviceSharding(tiny.jax.devices()[0]), samples
    )


def test_a_round_is_read_as_it_was_written(saved_rounds):
    samples = draw()
    saved_rounds.write(3, samples)
    again = saved_rounds.read(3, as_it_is)
    for one, other in zip(tiny.jax.tree.leaves(samples), tiny.jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_round_of_one_version_for_all_is_read(saved_rounds):
    """Files had a scalar `version` before every token had its own."""
    samples = draw()
    samples = samples.replace(mask_BC=samples.mask_BC.at[0, 2:].set(False))
    saved_rounds.write(3, samples)
    with np.load(saved_rounds.path(3)) as file:
        arrays = {name: file[name] for name in file if name != "version_BC"}
    np.savez(saved_rounds.path(3), version=np.int32(6), **arrays)
    again = saved_rounds.read(3, as_it_is)
    assert again.version_BC.dtype == samples.version_BC.dtype
    np.testing.assert_array_equal(again.version_BC, np.where(samples.mask_BC, 6, 0))


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: cut(path, 0),
        lambda path: cut(path, 100),
        lambda path: cut(path, path.stat().st_size - 1),
        flip,
    ],
    ids=["empty", "cut", "short", "flip"],
)
def test_a_damaged_round_is_named(saved_rounds, damage):
    saved_rounds.write(3, draw())
    damage(saved_rounds.path(3))
    with pytest.raises(Damaged, match=r"00000003\.npz cannot be read"):
        saved_rounds.read(3, as_it_is)


def test_a_missing_round_is_named(saved_rounds):
    with pytest.raises(Damaged, match=r"00000004\.npz is missing"):
        saved_rounds.read(4, as_it_is)
