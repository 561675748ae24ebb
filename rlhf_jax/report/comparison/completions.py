"""Completions of several groups side by side, of the same held-out prompts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import read
from rlhf_jax.report.comparison.runs import Compared, Comparison

KINDS = ("before", "after")
SCORES = ("gold", "reward")


@dataclass(frozen=True)
class Prompts:
    """Completions of the prompts that a run of every group has.

    `runs` has one run of each group. `before` are completions of the SFT policy by prompt, where it
    says the same in all runs. `after` has, by prompt, the completion of each run. `scores` are the
    scores that the completions have.
    """

    runs: tuple[Compared, ...]
    before: Mapping[str, Line]
    after: Mapping[str, tuple[Line, ...]]
    scores: tuple[str, ...]


def side_by_side(comparison: Comparison) -> Prompts:
    """The prompts that all groups have a completion of after training, in the order of the first.

    Runs of one seed are taken where they are: the seed decides which prompts are kept.
    """
    counts = Counter(seed for group in comparison.groups for seed in group.seeds)
    seed = max(counts, key=lambda seed: (counts[seed], -seed))
    runs = tuple(
        next((run for run in group.runs if run.seed == seed), group.runs[0])
        for group in comparison.groups
    )
    before, after = ([_by_prompt(run, kind) for run in runs] for kind in KINDS)
    common = [prompt for prompt in after[0] if all(prompt in texts for texts in after)]
    same = all(
        texts.get(prompt, {}).get("completion") == before[0].get(prompt, {}).get("completion")
        for texts in before
        for prompt in common
    )
    first = {prompt: before[0][prompt] for prompt in common if prompt in before[0]}
    lines = {prompt: tuple(texts[prompt] for texts in after) for prompt in common}
    scores = tuple(
        name
        for name in SCORES
        if any(line.get(name) is not None for texts in lines.values() for line in texts)
        and (name != "reward" or len({run.units.reward for run in runs}) == 1)
    )
    return Prompts(runs, first if same else {}, lines, scores)


def _by_prompt(run: Compared, kind: str) -> dict[str, Line]:
    """The last completion of each prompt, by the prompt's text."""
    return {text["prompt"]: text for text in read.select(run.run.samples, kind)}
