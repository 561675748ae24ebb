"""Records of in-flight updates: snapshots that a checkpoint needs, and a schedule that a replay reads."""

import json

import numpy as np
import pytest

from rlhf_jax.clock import Boundary, Clock
from rlhf_jax.records.checkpoints import Damaged
from rlhf_jax.records.streams import schedules
from rlhf_jax.records.streams.snapshots import Snapshots
from rlhf_jax.refusal import MissingInput, Refusal

CLOCK = Clock(4, num_minibatches=2, lag=1, inflight=True)


def write(path, versions):
    """A schedule with a boundary for each version; boundary 2 is passed over in idle time."""
    for place, version in enumerate(versions):
        index = place + (place > 1)
        boundary = Boundary(index, version, False, (index,), (0,), (index,), (version,))
        with path.open("a") as file:
            file.write(json.dumps(schedules.line(boundary, ())) + "\n")


def test_a_snapshot_is_read_as_it_was_written(tmp_path):
    snapshots = Snapshots(tmp_path / "stream")
    arrays = {"pool.step": np.array(3), "rows.0.tokens_BC": np.arange(6, dtype=np.int32)}
    snapshots.write(2, arrays)
    again = snapshots.read(2)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    with pytest.raises(Damaged, match=r"00000003\.npz is missing"):
        snapshots.read(3)
    path = tmp_path / "stream" / "00000002.npz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Damaged, match=r"00000002\.npz cannot be read"):
        snapshots.read(2)


def test_snapshots_are_kept_for_checkpoints_and_for_rounds_to_come(tmp_path):
    snapshots = Snapshots(tmp_path)
    for round_index in range(1, 8):
        (tmp_path / f"{round_index:08d}.npz").touch()
    (tmp_path / "00000007.partial").touch()  # the sampling thread is writing it
    snapshots.keep_for([2, 4], 5)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [
        *(f"{r:08d}.npz" for r in (2, 4, 5, 6)),
        "00000007.npz",
        "00000007.partial",
    ]


def test_a_run_that_goes_on_forgets_later_snapshots(tmp_path):
    """In bounded mode a later round may have other rows now."""
    for round_index in (2, 3, 4):
        (tmp_path / f"{round_index:08d}.npz").touch()
    (tmp_path / "00000002.partial").touch()
    Snapshots(tmp_path).forget_after(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002.npz", "00000003.npz"]


def test_a_schedule_gives_the_first_boundary_of_each_round(tmp_path):
    """Versions 0 0 2 6 at boundaries 0 1 3 4: round 0 is seen trained at 3, rounds 1 and 2 at 4,
    round 3 never.
    """
    write(tmp_path / schedules.FILE, [0, 0, 2, 6])
    assert schedules.boundaries(tmp_path / schedules.FILE, CLOCK) == (3, 4, 4)


def test_a_schedule_is_cut_back_to_a_boundary(tmp_path):
    path = tmp_path / schedules.FILE
    schedules.cut_back(path, 3)
    assert not path.exists()
    write(path, [0, 0, 2, 6])
    with path.open("a") as file:
        file.write('{"stage": "rl')
    schedules.cut_back(path, 4)
    assert [json.loads(line)["boundary"] for line in path.read_text().splitlines()] == [0, 1, 3]


@pytest.mark.parametrize(
    ("versions", "named"),
    [([0, 3], "version 3"), ([0, 8], "version 8; .* 0 to 6"), ([2, 0], "versions that fall")],
)
def test_a_schedule_of_another_clock_is_refused(tmp_path, versions, named):
    write(tmp_path / schedules.FILE, versions)
    with pytest.raises(Refusal, match=named):
        schedules.boundaries(tmp_path / schedules.FILE, CLOCK)


def test_a_run_without_a_schedule_cannot_be_replayed(tmp_path):
    with pytest.raises(MissingInput, match=r"no schedule .*schedule\.jsonl"):
        schedules.boundaries(tmp_path / schedules.FILE, CLOCK)
