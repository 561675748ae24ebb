"""The identity that trackers are given: the config, the last start, and a digest of the numbers."""

from pathlib import Path

import pytest

from rlhf_jax.run_directory import identity, starts
from rlhf_jax.run_directory.stage_records import Facts

VALUES = {"seed": 3, "track": "tensorboard", "rlhf.total_prompts": 64, "algorithm.beta": 0.5}


def facts(**changed: object) -> Facts:
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    return Facts(VALUES | dotted, {}, {})


def test_the_identity_has_the_config_and_the_last_start(tmp_path: Path):
    for devices in (1, 2):
        starts.write(tmp_path, {"environment": {"num_devices": devices}, "changed": {}, "at": {}})
    found = identity.identity_of(tmp_path, facts())
    assert found.name == tmp_path.name
    assert found.settings == VALUES
    assert found.start["environment"] == {"num_devices": 2}
    assert set(found.start) == {
        "date",
        "pid",
        "host",
        "command",
        "version",
        "commit",
        "environment",
    }


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"track": "off"}, True),
        ({"rlhf__total_prompts": 128}, True),
        ({"seed": 4}, False),
        ({"algorithm__beta": 0.1}, False),
    ],
)
def test_the_digest_is_of_what_enters_the_numbers(tmp_path: Path, changed, is_same: bool):
    digests = [
        identity.identity_of(tmp_path, found).digest for found in (facts(), facts(**changed))
    ]
    assert (digests[0] == digests[1]) is is_same


def test_a_run_that_is_not_recorded_has_no_trackers(tmp_path: Path):
    assert identity.openers(tmp_path, None) == {}
    assert identity.openers(tmp_path, facts(track="off")) == {}
    assert set(identity.openers(tmp_path, facts())) == {"tensorboard"}
