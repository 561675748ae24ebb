"""The key `track` of a config: the trackers of a run.

auto                    TensorBoard where its package is installed
off                     none
tensorboard,wandb       these; each is a file of `trackers/`, or a user's own (`registry.py`)
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from rlhf_jax import registry
from rlhf_jax.records import notes
from rlhf_jax.records.trackers.api import Identity, Tracker
from rlhf_jax.refusal import Refusal

AUTO, OFF = "auto", "off"
FOLDER = "records.trackers"


def names(track: str) -> list[str]:
    """The names of a run's trackers.

    Raises Refusal for an empty name, and one that is given twice.
    """
    if track == AUTO:
        return ["tensorboard"] if has_tensorboard() else []
    if track == OFF:
        return []
    found = [name.strip() for name in track.split(",")]
    if not all(found) or len(set(found)) < len(found) or {AUTO, OFF} & set(found):
        known = ", ".join(registry.names(FOLDER))
        raise Refusal(
            f"track is {track!r}; accepted: {AUTO}, {OFF}, or names with commas between them, each "
            f"once ({known}, or your own)"
        )
    return found


def check(track: str) -> None:
    """Raises Refusal for a tracker that is not known, is not installed, or cannot be used here."""
    for name in names(track):
        registry.entry(FOLDER, name)
        module = registry.find(FOLDER, name)
        if isinstance(module, ModuleType) and hasattr(module, "check"):
            module.check()


def makers(track: str) -> dict[str, Callable[[Path, Identity], Tracker]]:
    """The functions that open the trackers of a run, by name. Raises as `check`."""
    return {name: registry.entry(FOLDER, name) for name in names(track)}


@functools.cache
def has_tensorboard() -> bool:
    """True where `tensorboardX`, of the extra `track`, is installed.

    Prints a line, once per process, where it is not.
    """
    is_installed = importlib.util.find_spec("tensorboardX") is not None
    if not is_installed:
        notes.say(
            "no TensorBoard events, only metrics.jsonl; for both: pip install 'rlhf_jax[track]'"
        )
    return is_installed
