"""Finds groups of runs with the same numbers: what differs in their configs has changed none."""

from collections.abc import Sequence

from rlhf_jax.records import rates
from rlhf_jax.report import read
from rlhf_jax.report.comparison.runs import ABSENT, Compared, Comparison


def sentences(comparison: Comparison) -> list[str]:
    """A sentence for each group whose numbers are those of a group before it.

    The numbers of a run are the figures of its updates and of its evaluations, without times. Groups
    are compared by the seeds that both have.
    """
    numbers = [{run.seed: _numbers(run) for run in group.runs} for group in comparison.groups]
    found = []
    for index in range(len(numbers)):
        for earlier in range(index):
            seeds = sorted(numbers[index].keys() & numbers[earlier].keys())
            if seeds and all(numbers[index][seed] == numbers[earlier][seed] for seed in seeds):
                found.append(_sentence(comparison, earlier, index, seeds))
                break
    return found


def _numbers(run: Compared) -> tuple[str, ...]:
    """Every figure of a run that is no time, as text, in which NaN equals NaN."""
    lines = [*read.policy_updates(run.run.lines), *run.curve]
    return tuple(
        repr({name: value for name, value in line.items() if not rates.is_timing(name)})
        for line in lines
    )


def _sentence(comparison: Comparison, first: int, second: int, seeds: Sequence[int]) -> str:
    """A sentence with what two groups have in common, and which keys have changed nothing."""
    letters = [comparison.groups[index].letter for index in (first, second)]
    named = f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    text = f"{' and '.join(letters)} have the same numbers in every update and evaluation ({named})"
    keys = [
        f"`{key}`"
        for key, shown in comparison.differing.items()
        if shown[first] != shown[second] and ABSENT not in (shown[first], shown[second])
    ]
    return f"{text}: {', '.join(keys)} changed none of them." if keys else f"{text}."
