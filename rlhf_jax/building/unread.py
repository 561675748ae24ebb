"""Keys of a config that a run does not read, because another key turns their part off."""

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_jax.building.nodes import defaults
from rlhf_jax.config import flatten

Reader = tuple[Callable[[Mapping[str, Any]], bool], str]
_SLOTS: Reader = lambda values: values["rlhf.engine"] == "slots", "rlhf.engine=slots"
READERS: dict[str, Reader] = {
    "lora.": (lambda values: values["lora.rank"] > 0, "lora.rank of 1 or more"),
    "rlhf.ledger_gold": (lambda values: values["rlhf.ledger"], "rlhf.ledger=True"),
    "rlhf.num_slots": _SLOTS,
    "rlhf.sampler_slice_devices": (
        lambda values: values["rlhf.sampler_slices"] > 0,
        "rlhf.sampler_slices of 1 or more",
    ),
    "rlhf.scoring.overlong.": (
        lambda values: values["rlhf.scoring.overlong.buffer"] > 0,
        "rlhf.scoring.overlong.buffer of 1 or more",
    ),
    "rlhf.segment_steps": _SLOTS,
    "rlhf.signal.": (
        lambda values: values["rlhf.signal.num_prompts"] > 0,
        "rlhf.signal.num_prompts of 1 or more",
    ),
}
"""By a key, or by the beginning of some with a dot at its end: whether a run reads it, and what it
needs for that."""


def notes(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each key that has another value than its default and that the run does not read.

    Args:
      config: of the run, nested.
    """
    values, usual = flatten(config), flatten(defaults(dict(config)))
    found = []
    for prefix, (reads, needed) in READERS.items():
        changed = [
            f"{key}={value}"
            for key, value in values.items()
            if (key == prefix or (prefix.endswith(".") and key.startswith(prefix)))
            and value != usual.get(key, value)
        ]
        if changed and not reads(values):
            found.append(f"{', '.join(changed)} is not read without {needed}")
    return found
