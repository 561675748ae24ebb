"""Names of components in configs, compared by what they name: one component may be written in
several ways.
"""

from rlhf_jax import registry
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.rewards.common.terms import parse

FOLDERS = {
    "algorithm.name": "algorithms",
    "task.name": "tasks",
    "model.family": "models",
    "job": "stages",
}
REWARD = "reward"


def same(key: str, a: object, b: object) -> bool:
    """True for two values of a config's key that are equal, or name the same component.

    Args:
      key: its nodes joined by dots.
      a: a value.
      b: another value.

    `mine.py`, its whole path and `mine.py:reward` are one reward, as are `my_lab.mine:brevity` and
    `my_lab.mine.brevity`. A name whose module no longer exists is compared as text.
    """
    if a == b:
        return True
    if not (isinstance(a, str) and isinstance(b, str)) or (key not in FOLDERS and key != REWARD):
        return False
    return normalised(key, a) == normalised(key, b)


def normalised(key: str, value: str) -> str | list[tuple[float, str, str]]:
    """The value of a key that names components, in one form for each component."""
    if key != REWARD:
        return _canonical(FOLDERS[key], value)
    try:
        terms = parse(value)
    except Refusal:
        return value
    return [(term.weight, term.label, _canonical("rewards", term.name)) for term in terms]


def _canonical(folder: str, name: str) -> str:
    try:
        return registry.canonical(folder, name)
    except (Refusal, ComponentError):
        return name
