"""Functions of compiled programs, made once a process.

JAX keeps what it traced and compiled of a function for as long as that function object lives. A
run that binds its model or its optimizer to a function again makes another object, and the same
program is traced, lowered and loaded again. Here equal arguments give one object, so that a second
run of a process (in a notebook, a sweep, or to resume) finds the programs of the first.
"""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
KEPT = 64
"""Results that are kept of each function, the latest; with them go their programs."""


def once(make: Callable[P, T]) -> Callable[P, T]:
    """Wraps `make` so that equal arguments give the object that they gave before.

    Arguments that cannot be hashed, such as a model of a user's own that is not frozen, give a new
    object each time. Arguments must not be arrays.

    Args:
      make: a function of its arguments alone.
    """
    kept = lru_cache(KEPT, typed=True)(make)
    KEEPERS.append(kept.cache_clear)

    @wraps(make)
    def made(*args: P.args, **named: P.kwargs) -> T:
        try:
            hash((args, tuple(named.values())))
        except TypeError:
            return make(*args, **named)
        return kept(*args, **named)

    return made


KEEPERS: list[Callable[[], None]] = []
"""What forgets the results of each function."""


def forget() -> None:
    """Forgets every object, so that later programs are traced anew.

    It is for code that changed what a traced function calls, or how it is compiled.
    """
    for clear in KEEPERS:
        clear()


@once
def bound(function: Callable[..., T], *args: Any, **named: Any) -> Callable[..., T]:
    """`functools.partial(function, *args, **named)`, one object for equal arguments.

    Args:
      function: pure.
      args: its first arguments.
      named: its keyword arguments.
    """
    return partial(function, *args, **named)
