"""The identity of a run as trackers are given it, from its facts and its last start."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rlhf_jax.records import tracking
from rlhf_jax.records.trackers.api import Identity, Tracker
from rlhf_jax.run_directory import keys, starts
from rlhf_jax.run_directory.stage_records import Facts

LEFT_OUT = ("stage", "digests", "at", "changed", "differences")
"""Fields of a start that say what was in the directory."""


def openers(directory: Path, facts: Facts | None) -> dict[str, Callable[[], Tracker]]:
    """The functions that open the trackers of a run, by name.

    Args:
      directory: of the run.
      facts: of the run; None: the run is not recorded, and has no trackers.

    Raises Refusal for a tracker that is not known.
    """
    found = {} if facts is None else tracking.makers(facts.values["track"])
    if facts is None or not found:
        return {}
    identity = identity_of(directory, facts)
    return {name: partial(make, directory, identity) for name, make in found.items()}


def identity_of(directory: Path, facts: Facts) -> Identity:
    """The identity of a run.

    Args:
      directory: of the run.
      facts: of the run now.
    """
    start = (starts.read(directory) or [starts.process_facts()])[-1]
    entering = {
        key: value
        for key, value in facts.values.items()
        if keys.class_of(key) is keys.Class.NUMBERS
    }
    digest = hashlib.sha256(json.dumps(entering, sort_keys=True).encode()).hexdigest()
    return Identity(
        name=directory.absolute().name,
        settings=dict(facts.values),
        start={name: value for name, value in start.items() if name not in LEFT_OUT},
        digest=digest[:16],
    )
