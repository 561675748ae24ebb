"""Keys that were renamed, removed or added since runs were made, so that an older run is read as
what it was.

Whoever renames or removes a key, or adds one whose default changes numbers, adds a line here. A key
that an older run has and that is in no table is refused by name: nothing of an older run is ever
read at a default.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_jax.refusal import Refusal

RENAMED: dict[str, str] = {
    "hub.base": "pretrained.base",
    "hub.sft": "pretrained.sft",
    "hub.reward_model": "pretrained.reward_model",
    "hub.gold": "pretrained.gold",
    "hub.gold_chat_template": "pretrained.gold_chat_template",
    "hub.gold_rows_per_batch": "pretrained.gold_rows_per_batch",
    "rlhf.trace": "rlhf.version_schedule",
    "rlhf.replay": "rlhf.replay_schedule_of",
    "algorithm.discount": "algorithm.gamma",
    "algorithm.decay": "algorithm.gae_lambda",
}
"""old key -> new key, of the same values."""

RENAMED_OF = {"algorithm.discount": "ppo", "algorithm.decay": "ppo"}
"""old key -> the algorithm that had it; another algorithm may have a key of that name."""

RENAMED_VALUES: dict[tuple[str, Any], Any] = {
    ("job", "relabel"): "comparisons",
    ("model.family", "hub"): "pretrained",
}
"""(new key, old value) -> new value, where a component was renamed."""

REMOVED: dict[str, Any] = {}
"""old key -> the one value of it that the code still computes."""

ADDED: dict[str, Any] = {}
"""new key -> the value that does what the code did before the key was there, where that is not the
default.
"""


def translated(stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The flattened values of a stored config under today's keys.

    Args:
      stored: values by keys joined by dots, as a run wrote them.
      where: the file, for messages.

    Raises Refusal for a removed key whose value is no longer computed.
    """
    translated_values: dict[str, Any] = {}
    for key, value in stored.items():
        if key in REMOVED:
            if value != REMOVED[key]:
                raise Refusal(
                    f"{where} has {key}={value!r}; the key was removed, and the code computes "
                    f"{REMOVED[key]!r} alone"
                )
            continue
        name = RENAMED[key] if is_renamed(key, stored) else key
        renamed = isinstance(value, str) and (name, value) in RENAMED_VALUES
        translated_values[name] = RENAMED_VALUES[name, value] if renamed else value
    return translated_values


def is_renamed(key: str, values: Mapping[str, Any]) -> bool:
    """True for an old key of a flattened config, whose algorithm is the one that had it."""
    return key in RENAMED and values.get("algorithm.name") == RENAMED_OF.get(
        key, values.get("algorithm.name")
    )


def renamed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Values by today's names of their keys; the values are not read."""
    return {RENAMED.get(key, key): value for key, value in stored.items()}


def new_name(key: str) -> str:
    """Returns a sentence with the new name of a renamed key, or of the keys below it; "" for any
    other key.
    """
    names = {old: new for old, new in RENAMED.items() if old == key or old.startswith(f"{key}.")}
    return (
        f"renamed: {', '.join(f'{old} is now {new}' for old, new in names.items())}"
        if names
        else ""
    )


def check_known(stored: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raises Refusal that names the keys of a translated config which this version of the code does
    not have.
    """
    unknown = sorted(stored.keys() - known.keys())
    if unknown:
        listed = ", ".join(f"{key}={stored[key]!r}" for key in unknown[:6])
        raise Refusal(
            f"{where} has {listed}: this version of the code has no such key, nor a new name for it"
        )


def older_value(key: str, default: object) -> object:
    """The value of a key in a run that is older than the key: that of `ADDED`, else the default.

    Args:
      key: its nodes joined by dots.
      default: of the component.
    """
    return ADDED.get(key, default)
