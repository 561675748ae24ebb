"""The order of long tests, and those that begin too late."""

import types
from typing import cast

import pytest

from tests import slow

FILES = ("tests/a.py", "tests/b.py", slow.FIRST[0], "tests/c.py")


def items() -> list[pytest.Item]:
    names = [f"{file}::test_{number}" for file in FILES for number in range(2)]
    return [cast(pytest.Item, types.SimpleNamespace(nodeid=name)) for name in names]


def files(ordered: list[pytest.Item]) -> list[str]:
    return list(dict.fromkeys(item.nodeid.partition("::")[0] for item in ordered))


def config(limit: float | None) -> pytest.Config:
    return cast(pytest.Config, types.SimpleNamespace(getoption=lambda name: limit))


def test_files_that_take_longest_come_first():
    ordered = items()
    slow.order(ordered)
    assert files(ordered) == [FILES[2], FILES[0], FILES[1], FILES[3]]


@pytest.mark.parametrize("first", [0, 1, 3, 6])
def test_a_circle_from_any_file(first: int):
    ordered = items()
    slow.order(ordered, first)
    start = first % len(FILES)
    assert files(ordered) == [*FILES[start:], *FILES[:start]]
    assert sorted(item.nodeid for item in ordered) == sorted(item.nodeid for item in items())


def test_a_late_test_is_skipped_with_the_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slow, "STARTED", slow.STARTED - 1_000)
    with pytest.raises(pytest.skip.Exception, match="not begun within 900 s of the start"):
        slow.skip_when_late(config(900))


@pytest.mark.parametrize("limit", [None, 100_000.0])
def test_others_are_not_skipped(limit: float | None):
    slow.skip_when_late(config(limit))
