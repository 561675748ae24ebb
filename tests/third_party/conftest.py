"""The laboratory's package as an installed one: on the path of this process and of those that it
starts.
"""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def my_lab(monkeypatch):
    """Makes `my_lab` importable, at the root of the repository."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (HERE, HERE.parents[1]))))
    monkeypatch.chdir(HERE.parents[1])
