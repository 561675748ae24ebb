"""Primary tests of several kinds in one family: differences, equivalences, and figures below a
limit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.studies.markdown import (
    LEVEL,
    Contrast,
    number,
    probability,
    table,
    with_interval,
)
from rlhf_jax.report.statistics import (
    OfSeed,
    Result,
    by_seed,
    detectable,
    final,
    holm,
    p_value,
    p_value_below,
    p_value_equivalent,
    t_interval,
)

FALL = 0.10  # of accuracy below its largest earlier value: a run has collapsed (protocol.md)


@dataclass(frozen=True)
class Hypothesis:
    """A primary test: one value per seed, and the alternative that a small p-value speaks for.

    "different": the mean is not 0, two-sided. "equivalent": it is within ± `bound`, by two
    one-sided tests. "below": it is less than `bound`. `note` follows the result on the page.
    """

    name: str
    values: OfSeed
    alternative: Literal["different", "equivalent", "below"]
    unit: str
    bound: float = math.nan
    digits: int = 3
    note: str = ""

    @property
    def p(self) -> float:
        """The p-value, not adjusted."""
        values = list(self.values.values())
        if self.alternative == "different":
            return p_value(values)
        return (p_value_below if self.alternative == "below" else p_value_equivalent)(
            values, self.bound
        )

    def result(self, adjusted: float) -> str:
        """The result in words, by the rule of the protocols: supported, refuted or undecided.

        An equivalence or a limit is refuted where the 95 % interval lies outside of it as a whole.

        Args:
          adjusted: Holm's p-value.
        """
        values = list(self.values.values())
        mean, half = t_interval(values)
        if adjusted < LEVEL:
            shown = {"different": "larger than 0" if mean > 0 else "smaller than 0"}
            shown |= {"equivalent": f"within ±{self.bound:g}", "below": f"below {self.bound:g}"}
            return f"supported: {shown[self.alternative]}"
        if self.alternative == "different":
            least = number(detectable(values), self.digits)
            return f"undecided; {least} {self.unit} would have been found"
        size = abs(mean) if self.alternative == "equivalent" else mean
        if size - half > self.bound:
            return f"refuted: outside of {self.bound:g}"
        low, high = (number(end, self.digits) for end in (mean - half, mean + half))
        return f"undecided: {low} to {high} {self.unit}"


def hypotheses_table(tests: Sequence[Hypothesis]) -> str:
    """A row for each test of a family: mean with its 95 % interval, p-value, Holm's, and the
    result.
    """
    adjusted = holm([test.p for test in tests])
    rows = [
        [
            test.name,
            with_interval(test.values, test.digits, signed=test.alternative != "below"),
            probability(test.p),
            probability(corrected),
            "; ".join(filter(None, (test.result(corrected), test.note))),
        ]
        for test, corrected in zip(tests, adjusted, strict=True)
    ]
    return table(("hypothesis", "mean, 95 % interval", "p", "p, Holm", "result"), rows)


def accuracy(lines: Sequence[Result]) -> OfSeed:
    """Held-out accuracy at the end of training, by seed."""
    return by_seed(lines, lambda line: final(line, "gold_mean"))


def is_collapsed(line: Result, figure: str = "gold_mean", fall: float = FALL) -> bool:
    """True for a run that diverged, or that ends more than `fall` below its best evaluation.

    Args:
      line: of the run.
      figure: of an evaluation.
      fall: in its unit.
    """
    values = [evaluation[figure] for evaluation in line["curve"]]
    return bool(line.get("diverged")) or max(values) - values[-1] > fall


def collapsed_note(
    lines: Sequence[Result], collapsed: Callable[[Result], bool] = is_collapsed
) -> str:
    """A note of how many runs of a test collapsed; "" for none.

    Args:
      lines: of the runs.
      collapsed: the study's rule.
    """
    fallen = sum(map(collapsed, lines))
    return f"{fallen} of its {len(lines)} runs collapsed" if fallen else ""


def wrong_signs(values: Sequence[float]) -> int:
    """Values whose sign is not that of the mean of the others: what one seed alone would have got
    wrong.
    """
    return sum(
        value * sum([*values[:index], *values[index + 1 :]]) < 0
        for index, value in enumerate(values)
    )


def wrong_signs_sentence(tests: Sequence[Contrast]) -> str:
    """A sentence on what one seed alone would have got wrong.

    Args:
      tests: one value per seed each.
    """
    wrong = sum(wrong_signs(list(test.values.values())) for test in tests)
    pairs = sum(len(test.values) for test in tests)
    return (
        f"One seed alone has the other sign than the mean of the other seeds in {wrong} of {pairs} of "
        "these values."
    )
