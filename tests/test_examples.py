"""Examples of docstrings, which print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("rlhf_jax", "experiments", "configs")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_there_are_examples():
    assert {"rlhf_jax.face.calls", "rlhf_jax.sweeps.grid"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
