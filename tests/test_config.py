"""Bounds of a config's values: what `fill` refuses, and that every key of every component says what
it accepts.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from rlhf_jax import build, registry
from rlhf_jax.config import (
    LARGEST,
    Bounds,
    Count,
    Fraction,
    Natural,
    Positive,
    Problems,
    Unbounded,
    fill,
)
from rlhf_jax.refusal import MissingInput, Refusal


@dataclass(frozen=True)
class Inner:
    share: Fraction = 0.5
    angle: Annotated[float, Unbounded("it turns either way")] = 0.0


@dataclass(frozen=True)
class Outer:
    count: Count = 3
    rate: Positive = 0.1
    below: Annotated[float, Bounds(least=0, below=1)] = 0.9
    size: Annotated[int, Bounds(least=1, also=(-1,))] = 1
    kind: Literal["linear", "cosine"] = "linear"
    versions: tuple[Natural, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    limit: int | None = None
    plain: float = 1.0
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Needed:
    width: Count
    depth: Count = 1


WRONG = [
    ({"count": 0}, "outer.count is 0; accepted: 1 or more"),
    ({"count": LARGEST + 1}, "outer.count is 2147483648; accepted: 1 to 2**31 - 1"),
    ({"rate": 0}, "outer.rate is 0.0; accepted: above 0"),
    ({"rate": -0.1}, "outer.rate is -0.1; accepted: above 0"),
    ({"rate": math.nan}, "outer.rate is nan; accepted: above 0"),
    ({"rate": math.inf}, "outer.rate is inf; accepted: above 0"),
    ({"rate": -math.inf}, "outer.rate is -inf; accepted: above 0"),
    ({"rate": 1e39}, "outer.rate is 1e+39; accepted: above 0"),
    ({"rate": 1e-39}, "outer.rate is 1e-39, which is 0.0 in float32; accepted: above 0"),
    (
        {"below": 0.99999999},
        "outer.below is 0.99999999, which is 1.0 in float32; accepted: 0 or more, below 1",
    ),
    ({"below": 1.0}, "outer.below is 1.0; accepted: 0 or more, below 1"),
    ({"size": 0}, "outer.size is 0; accepted: 1 or more, or -1"),
    ({"size": -2}, "outer.size is -2; accepted: 1 or more, or -1"),
    ({"kind": "steps"}, "outer.kind is 'steps'; accepted: linear, cosine"),
    ({"kind": True}, "outer.kind is True; accepted: linear, cosine"),
    ({"versions": (0, -1)}, "outer.versions is -1; accepted: 0 or more"),
    ({"versions": "(0, 1)"}, "outer.versions is '(0, 1)', a str; accepted: a tuple"),
    ({"versions": 3}, "outer.versions is 3, a int; accepted: a tuple"),
    ({"pair": (1.0,)}, "outer.pair is (1.0,); accepted: 2 values"),
    ({"pair": (1.0, math.nan)}, "outer.pair is nan; accepted: a finite number"),
    ({"limit": "none"}, "outer.limit is 'none', a str; accepted: int"),
    ({"plain": math.nan}, "outer.plain is nan; accepted: a finite number"),
    ({"inner": {"share": 1.1}}, "outer.inner.share is 1.1; accepted: 0 to 1"),
    ({"inner": {"angle": math.inf}}, "outer.inner.angle is inf; accepted: a finite number"),
    ({"inner": 3}, "outer.inner is 3; accepted: keys below it"),
    ({"coutn": 1}, "outer has no key 'coutn'; did you mean 'count'?"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_not_accepted_is_named(values, message):
    with pytest.raises(Refusal) as refused:
        fill(Outer, values, "outer")
    assert refused.value.messages == (message,)


def test_what_is_accepted():
    values = {"count": 1, "rate": 2e-38, "below": 0, "size": -1, "kind": "cosine", "limit": 7}
    filled = fill(
        Outer, values | {"versions": [0, 4], "pair": (-1, 2), "inner": {"angle": -9}}, "outer"
    )
    inner = Inner(angle=-9.0)
    assert filled == Outer(1, 2e-38, 0.0, -1, "cosine", (0, 4), (-1.0, 2.0), 7, inner=inner)
    assert isinstance(filled.below, float)


def test_every_problem_is_told_at_once():
    with pytest.raises(Refusal) as refused:
        fill(Outer, {"count": 0, "rate": math.nan, "inner": {"share": 2}, "x": 1}, "outer")
    assert [message.split()[0] for message in refused.value.messages] == [
        "outer.count", "outer.rate", "outer.inner.share", "outer",
    ]  # fmt: skip
    assert str(refused.value) == "\n".join(refused.value.messages)


def test_a_key_without_a_default_must_be_given():
    assert fill(Needed, {"width": 4}, "model") == Needed(4)
    with pytest.raises(Refusal, match="model lacks 'width', which has no default"):
        fill(Needed, {"depth": 2}, "model")


def test_one_problem_keeps_its_class():
    problems = Problems()
    problems.refuse()
    with problems.caught():
        raise MissingInput("no such file")
    with pytest.raises(MissingInput, match="no such file"):
        problems.refuse()
    problems.note("and the learning rate is negative")
    with pytest.raises(Refusal) as refused:
        problems.refuse()
    assert refused.value.messages == ("no such file", "and the learning rate is negative")


def numbers(kind: Any, where: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The numeric keys of an annotation, and what is said of their bounds; nested dataclasses and
    tuples too.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if name in {field.name for field in dataclasses.fields(kind)}:
                yield from numbers(hint, f"{where}.{name}")
    elif origin is Annotated:
        if arguments[0] in (int, float):
            yield where, arguments[1:]
        else:
            yield from numbers(arguments[0], where)
    elif kind in (int, float):
        yield where, ()
    elif origin is not Literal:
        for argument in arguments:
            yield from numbers(argument, where)


COMPONENTS = {
    f"{folder}.{name}": registry.find(folder, name).Config
    for folder in ("algorithms", "models", "rewards", "tasks")
    for name in registry.names(folder)
    if hasattr(registry.find(folder, name), "Config")
}
SETTINGS = COMPONENTS | build.NODES | {"run": build.Run}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_number_of_a_config_has_bounds_or_says_why_not(name):
    for key, said in numbers(SETTINGS[name], name):
        assert any(isinstance(bound, Bounds | Unbounded) for bound in said), (
            f"{key} accepts every number: annotate it with Bounds, or with Unbounded and the "
            "reason (rlhf_jax/config.py)"
        )
        assert all(bound.reason for bound in said if isinstance(bound, Unbounded))


def test_the_walk_sees_what_it_must():
    found = {where for where, _ in numbers(Outer, "outer")}
    assert {"outer.count", "outer.pair", "outer.limit", "outer.plain", "outer.inner.share"} <= found
    assert "outer.kind" not in found
    assert sum(1 for name in SETTINGS for _ in numbers(SETTINGS[name], name)) > 200
    assert {"rlhf.version_schedule", "rlhf.optimizer.beta1", "run.seed", "mesh.data"} <= {
        where for name in SETTINGS for where, _ in numbers(SETTINGS[name], name)
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_and_presets_are_accepted(name):
    module = registry.find(*name.split(".")) if name in COMPONENTS else None
    for config in getattr(module, "PRESETS", {"": None}).values():
        values = dataclasses.asdict(config or SETTINGS[name]())
        assert fill(SETTINGS[name], values, name) == (config or SETTINGS[name]())
