"""Numbers and times as a page prints them: three digits, a true minus sign, and as many decimals as
an interval has.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_jax.records.progress import format_number, format_seconds

MINUS = "−"
ABSENT = "–"
MOST_DECIMALS = 6
INTERVAL = 1.96  # standard errors: a 95 % interval of a mean over many prompts


def number(value: float) -> str:
    """Three significant digits, with a minus sign in the place of a hyphen.

    >>> number(-0.25), number(1250.4)
    ('−0.250', '1250')
    """
    return format_number(value).replace("-", MINUS)


def half_width(stderr: object) -> float | None:
    """Half of an interval of `INTERVAL` standard errors to either side; None where no standard
    error is known.
    """
    if isinstance(stderr, int | float) and math.isfinite(stderr):
        return INTERVAL * stderr
    return None


def with_interval(value: float, stderr: object) -> str:
    """A value and its interval, both to the interval's second digit; the value alone where no
    standard error is known.

    >>> with_interval(0.773, 0.0051), with_interval(-3.27, 0.0372), with_interval(0.5, math.nan)
    ('0.773 ± 0.010', '−3.270 ± 0.073', '0.500')
    """
    half = half_width(stderr)
    return with_half_width(value, math.nan if half is None else half)


def with_half_width(value: float, half: float) -> str:
    """A value and half of its interval, both to the interval's second digit; the value alone where
    the half is NaN.

    >>> with_half_width(0.7731, 0.0102), with_half_width(0.5, math.nan)
    ('0.773 ± 0.010', '0.500')
    """
    if not (math.isfinite(half) and math.isfinite(value)):
        return number(value)
    decimals = _decimals(half)
    if decimals is None:
        return f"{number(value)} ± {number(half)}"
    return f"{value:.{decimals}f} ± {half:.{decimals}f}".replace("-", MINUS)


def alike(values: Sequence[float], stderr: object = None) -> list[str]:
    """Values with the same number of decimals: as an interval has them, or as three digits of the
    largest one need.

    >>> alike([0.0132, 1.2424], 0.012), alike([0.9998, 1.0]), alike([-3.0, 0.00012])
    (['0.013', '1.242'], ['1.00', '1.00'], ['−3.00', '0.00'])
    """
    half = half_width(stderr)
    if not all(map(math.isfinite, values)):
        return [number(value) for value in values]
    largest = max(map(abs, values))
    decimals = (
        _decimals(half)
        if half
        else 2
        if largest == 0
        else max(0, 2 - math.floor(math.log10(round(largest, 2) or largest)))
    )
    if decimals is None or decimals > MOST_DECIMALS or largest >= 1e7:
        return [number(value) for value in values]
    return [f"{value:.{decimals}f}".replace("-", MINUS) for value in values]


def cells(lines: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """A figure of several evaluations: with intervals where they are known, and else with as many
    decimals as each other; a dash where one lacks it.

    Args:
      lines: the evaluations.
      name: of the figure.

    >>> cells([{"kl": 0.0}, {"kl": 1.62}], "kl")
    ['0.00', '1.62']
    """
    values = [line.get(name) for line in lines]
    if None not in values and not any(f"{name}_stderr" in line for line in lines):
        return alike(values)  # pyright: ignore[reportArgumentType]
    return [
        ABSENT if line.get(name) is None else with_interval(line[name], line.get(f"{name}_stderr"))
        for line in lines
    ]


def _decimals(half: float) -> int | None:
    """Decimals that show an interval's second digit; None where that is not readable."""
    if half == 0:
        return None
    decimals = max(0, 1 - math.floor(math.log10(float(f"{half:.1e}"))))
    return decimals if decimals <= MOST_DECIMALS else None


def duration(seconds: float) -> str:
    """Seconds for a sentence: under 1 ms, 4.2 ms, 0.316 s, 12.3 s, 3 min 05 s.

    >>> duration(1.2e-05), duration(0.0042), duration(0.316), duration(185)
    ('under 1 ms', '4.2 ms', '0.316 s', '3 min 05 s')
    """
    if seconds < 0.001:
        return "under 1 ms"
    if seconds < 0.1:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    return f"{seconds:.3g} s" if seconds < 59.95 else format_seconds(seconds)


def percent(share: float) -> str:
    """A share as whole per cents, or "under 1 %"."""
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def listed(numbers: Iterable[object]) -> str:
    """ "0, 16 and 32", or the ends of a long list: "0 to 64".

    >>> listed([0, 16, 32]), listed(range(40)), listed([7])
    ('0, 16 and 32', '0 to 39', '7')
    """
    texts = [str(value) for value in numbers]
    if len(texts) > 8:
        return f"{texts[0]} to {texts[-1]}"
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)
