"""The key `track` names trackers of the package and one's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.records import tracking
from rlhf_jax.records.trackers import tensorboard, wandb
from rlhf_jax.records.trackers.api import Identity
from rlhf_jax.refusal import Refusal

ROOT = Path(__file__).parents[2]


def test_names_choose_trackers():
    assert tracking.makers("off") == {}
    assert tracking.makers("auto") == {"tensorboard": tensorboard.make}
    both = tracking.makers("wandb, tensorboard")
    assert both == {"wandb": wandb.make, "tensorboard": tensorboard.make}


def test_a_tracker_of_ones_own_is_a_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def make(directory, identity):\n    return (directory, identity.name)\n\n\n"
        "def other(directory, identity):\n    return identity.digest\n"
    )
    tracking.check(f"{path},{path}:other")
    identity = Identity("a_run", {}, {}, "abc")
    made = [make(tmp_path, identity) for make in tracking.makers(f"{path},{path}:other").values()]
    assert made == [(tmp_path, "a_run"), "abc"]


def test_a_file_that_makes_no_tracker_is_refused(tmp_path: Path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(Refusal, match="has no function make"):
        tracking.check(str(path))


def test_the_identity_is_told_as_rows():
    identity = Identity(
        "a_run",
        {"best_of_n": (1, 2), "reward": "learned"},
        {"environment": {"versions": {"jax": "1.2"}, "num_devices": 8}},
    )
    assert identity.rows() == [
        ("environment.versions.jax", "1.2"),
        ("environment.num_devices", "8"),
        ("best_of_n", "[1, 2]"),
        ("reward", "learned"),
    ]


def test_torch_is_not_imported_for_tensorboard(tmp_path):
    """It takes seconds, in every run where it is installed; whoever needs it later gets it."""
    (tmp_path / "torch.py").write_text("print('torch')")
    script = (
        "from rlhf_jax.records.trackers import tensorboard; tensorboard.check(); "
        "print('checked'); import torch; tensorboard.check()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["checked", "torch"], done.stderr
