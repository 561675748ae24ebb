"""Grids that a command line gives: `--grid rlhf.lag=0,1,4 --grid algorithm.beta=0.1,0.5 --seeds=3`.

The settings are the product of the grids. A cell is one setting with one seed, and is a run of its
own, as the command `run` makes it.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from rlhf_jax.refusal import Refusal

Setting = dict[str, str]
"""Texts of values by dotted key."""

NOT_VARIED = {
    "seed": "pass --seeds=3 (seeds 0, 1 and 2) or --seeds=0,5",
    "directory": "every cell has a directory of its own, under --directory",
}
MAX_NAME = 120
OPENING, CLOSING = "([{", ")]}"


def parse(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each key of `KEY=VALUE,VALUE` arguments.

    Args:
      texts: the arguments. A comma inside of brackets is part of a value.

    Raises Refusal for an argument of another form, a key or a value that is given twice, and a key
    that no grid varies.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        if not key or not equals or not listed:
            raise Refusal(f"--grid is {text!r}; accepted: KEY=VALUE,VALUE, e.g. rlhf.lag=0,1,4")
        if key in NOT_VARIED:
            raise Refusal(f"--grid has the key {key!r}; {NOT_VARIED[key]}")
        if key in grid:
            raise Refusal(f"--grid has the key {key!r} twice; accepted: all of its values in one")
        values = tuple(split(listed))
        if twice := [value for value in values if values.count(value) > 1]:
            raise Refusal(f"--grid {key} has the value {twice[0]!r} twice; accepted: each once")
        grid[key] = values
    return grid


def split(text: str) -> list[str]:
    """The parts of a text between the commas that are outside of brackets.

    >>> split("(1, 2),(4,)")
    ['(1, 2)', '(4,)']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def seeds(text: str | None) -> list[int] | None:
    """The seeds of `N`, which are 0 to N-1, or of a list; None for None: the config's own.

    >>> seeds("3"), seeds("0,5")
    ([0, 1, 2], [0, 5])

    Raises Refusal for any other text.
    """
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers) or len(set(numbers)) < len(numbers):
        raise Refusal(f"--seeds is {text!r}; accepted: a number, or different seeds: --seeds=0,5")
    listed = [int(number) for number in numbers]
    if len(listed) > 1:
        return listed
    if listed == [0]:
        raise Refusal("--seeds is 0; accepted: 1 or more, or a list of seeds")
    return list(range(listed[0]))


def settings(grid: Mapping[str, Sequence[str]]) -> Iterator[Setting]:
    """Every setting of a grid; one without values for an empty grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def overrides(setting: Setting) -> list[str]:
    """A setting as arguments of the command `run`."""
    return [f"--config.{key}={value}" for key, value in setting.items()]


def label(setting: Setting, seed: int) -> str:
    """A cell in a few words.

    >>> label({"rlhf.lag": "1", "algorithm.beta": "0.5"}, 2)
    'lag=1 beta=0.5 seed=2'
    """
    last = [key.rpartition(".")[2] for key in setting]
    names = [
        short if last.count(short) == 1 else key for key, short in zip(setting, last, strict=True)
    ]
    pairs = zip([*names, "seed"], [*setting.values(), str(seed)], strict=True)
    return " ".join(f"{name}={value}" for name, value in pairs)


def folder(label_of_cell: str, identity: str) -> str:
    """The name of a cell's directory: its label, and the digest of its config, which tells apart
    cells of one label.

    >>> folder("lag=1 seed=2", "0123456789abcdef")
    'lag=1_seed=2-01234567'
    """
    readable = re.sub(r"[^\w.=+-]+", "_", label_of_cell)[:MAX_NAME]
    return f"{readable}-{identity[:8]}"
