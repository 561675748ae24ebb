"""The protocol of a study: arms, the grid that each is tuned on, successive halving, and the cells that all this asks for.

Cells of one seed share SFT policy, reward model and prompts. Every arm's settings are chosen by successive halving over one
grid, on seeds and held-out prompts that are not reported; a best setting on an edge of the grid widens the grid there. An arm
that follows another is tuned after it, over that arm's choice times a few factors. Then every arm runs on the reported seeds. A
cell's result is a file: the protocol is asked for its next step when those of the last one are there.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

Setting = tuple[tuple[str, float], ...]
CELLS = "cells"
RESULT = "result.json"


@dataclass(frozen=True)
class Arm:
    """What differs from the study's config: overrides by dotted key, after the algorithm's file.

    `follows` names the arm whose chosen settings, times the study's factors, this one is tuned over; "": the grid. `policy` and
    `reward` name the variants of the config (`Study.variants`) that the SFT policy and the reward model are made with.
    """

    name: str
    algorithm: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    follows: str = ""
    policy: str = ""
    reward: str = ""


@dataclass(frozen=True)
class Rung:
    """A step of successive halving: updates of a cell, its seeds, and how many settings of an arm go on."""

    num_updates: int
    seeds: tuple[int, ...]
    keep: int


@dataclass(frozen=True)
class Study:
    """A protocol. `grid` has the values of each tuned key, rising; a key in `open_ended` may be widened past its ends.

    `factors` has, for a key of the grid, what an arm that follows another multiplies that arm's choice by. `report` is the
    module of `rlhf_jax/report/` that writes the page.
    """

    directory: Path
    base: Callable[[], ConfigDict]
    arms: tuple[Arm, ...]
    grid: Mapping[str, tuple[float, ...]]
    open_ended: Mapping[str, float]  # key -> factor to the next value beyond an edge
    rungs: tuple[Rung, ...]
    report_updates: int
    report_seeds: tuple[int, ...]
    score: str = "gold_mean"
    max_widenings: int = 2
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    report: str = "study"

    @property
    def tuned_arms(self) -> tuple[Arm, ...]:
        """The arms that are tuned over the grid."""
        return tuple(arm for arm in self.arms if not arm.follows)

    @property
    def following_arms(self) -> tuple[Arm, ...]:
        """The arms that are tuned over another one's choice."""
        return tuple(arm for arm in self.arms if arm.follows)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Cell:
    """One run, over the prompts of `num_updates` updates of one epoch. `purpose` is "tune" or "report": they see different
    held-out prompts."""

    arm: str
    setting: Setting
    seed: int
    num_updates: int
    purpose: str

    @property
    def path(self) -> Path:
        values = "_".join(f"{value:.6g}" for _, value in self.setting)
        return Path(CELLS, self.arm, f"{values}-{self.purpose}-{self.num_updates}", str(self.seed))


def results(study: Study, cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """The results of those cells that have ended."""
    paths = [study.directory / cell.path / RESULT for cell in cells]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def mean_score(study: Study, arm: Arm, setting: Setting, rung: Rung) -> float:
    """The mean over a rung's seeds of what settings are chosen by, at the end of the cells."""
    cells = [Cell(arm.name, setting, seed, rung.num_updates, "tune") for seed in rung.seeds]
    scores = [result["curve"][-1][study.score] for result in results(study, cells)]
    return sum(scores) / len(scores)


def tuning(study: Study) -> Iterator[list[Cell]]:
    """The cells of each step of tuning; the next step is asked for when these have ended."""
    alive = {
        arm.name: [tuple(zip(study.grid, values, strict=True)) for values in itertools.product(*study.grid.values())]
        for arm in study.tuned_arms
    }
    for rung in study.rungs:
        yield _cells(alive, rung)
        for _ in range(study.max_widenings if rung is study.rungs[-1] else 0):
            wider = {
                arm.name: beyond(study, alive[arm.name], best(study, arm, alive[arm.name], rung))
                for arm in study.tuned_arms
            }
            if not any(wider.values()):
                break
            alive = {arm: settings + wider[arm] for arm, settings in alive.items()}
            yield _cells(alive, rung)
        for arm in study.tuned_arms:
            ranked = sorted(alive[arm.name], key=lambda setting, a=arm, r=rung: -mean_score(study, a, setting, r))
            alive[arm.name] = ranked[: rung.keep]
    if study.following_arms:
        chosen = tuned_settings(study)
        yield _cells({arm.name: scaled(study, chosen[arm.follows]) for arm in study.following_arms}, study.rungs[-1])


def _cells(alive: Mapping[str, Sequence[Setting]], rung: Rung) -> list[Cell]:
    return [
        Cell(arm, setting, seed, rung.num_updates, "tune")
        for arm, settings in alive.items()
        for setting in settings
        for seed in rung.seeds
    ]


def best(study: Study, arm: Arm, settings: Sequence[Setting], rung: Rung) -> Setting:
    return max(settings, key=lambda setting: mean_score(study, arm, setting, rung))


def beyond(study: Study, known: Sequence[Setting], chosen: Setting) -> list[Setting]:
    """Settings one step past every edge of what is known on which the chosen one lies."""
    found = []
    for place, (key, value) in enumerate(chosen):
        if key not in study.open_ended:
            continue
        values = {value for setting in known for name, value in setting if name == key} | set(study.grid[key])
        for edge, factor in ((max(values), study.open_ended[key]), (min(values), 1 / study.open_ended[key])):
            if value and value == edge:  # beyond a weight of 0 there is nothing
                found.append((*chosen[:place], (key, value * factor), *chosen[place + 1 :]))
    return found


def scaled(study: Study, setting: Setting) -> list[Setting]:
    """The settings of an arm that follows one with this setting: every product with the study's factors."""
    values = [tuple(value * factor for factor in study.factors.get(key, (1.0,))) for key, value in setting]
    return [tuple(zip(dict(setting), products, strict=True)) for products in itertools.product(*values)]


def tuned_settings(study: Study) -> dict[str, Setting]:
    """The best setting of each arm tuned over the grid: of the last rung, over every setting that was run there."""
    rung = study.rungs[-1]
    found: dict[str, Setting] = {}
    for arm in study.tuned_arms:
        folders = (study.directory / CELLS / arm.name).glob(f"*-tune-{rung.num_updates}/*/{RESULT}")
        settings = {tuple(json.loads(path.read_text())["setting"].items()) for path in folders}
        complete = [
            s
            for s in sorted(settings)
            if len(results(study, [Cell(arm.name, s, seed, rung.num_updates, "tune") for seed in rung.seeds]))
            == len(rung.seeds)
        ]
        found[arm.name] = best(study, arm, complete, rung)
    return found


def chosen_settings(study: Study) -> dict[str, Setting]:
    """Each arm's best setting, in the order of the arms."""
    tuned = tuned_settings(study)
    followed = {
        arm.name: best(study, arm, scaled(study, tuned[arm.follows]), study.rungs[-1]) for arm in study.following_arms
    }
    return {arm.name: (tuned | followed)[arm.name] for arm in study.arms}


def report_cells(study: Study) -> list[Cell]:
    chosen = chosen_settings(study)
    return [
        Cell(arm.name, chosen[arm.name], seed, study.report_updates, "report")
        for seed in study.report_seeds
        for arm in study.arms
    ]
