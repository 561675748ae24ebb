"""The protocol of a study: arms, the grid that each is tuned on, successive halving, and the cells
that all this asks for.

Cells of one seed share SFT policy, reward model and prompts. Without rungs nothing is tuned: every
arm runs at every setting of the grid on the reported seeds. With rungs, every arm's setting is
chosen by successive halving over the grid, on seeds and held-out prompts that are not reported; a
best setting on an edge of the grid widens the grid there. An arm that follows another is tuned
after it, over that arm's choice times a few factors, widened in the same way. Then every arm runs
on the reported seeds. The protocol is asked for its next step when the cells of the last one have
ended.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from rlhf_jax.refusal import Refusal
from rlhf_jax.runtime.program import Program
from rlhf_jax.runtime.synchronous import Event
from rlhf_jax.types import Params

RLHF_JOBS = ("pipeline", "rlhf")
"""Jobs of which a cell runs the stage of RLHF."""

Value = float | int | str | bool | tuple[int, ...] | tuple[float, ...]
Setting = tuple[tuple[str, Value], ...]
Ended = Callable[["Cell"], dict[str, Any] | None]
"""The result of a cell, or None where it has not ended."""


@dataclass(frozen=True)
class Arm:
    """The difference to the study's config: overrides by dotted key, after the algorithm's file.

    `follows` names the arm whose chosen settings, times the study's factors, this one is tuned
    over; "": the grid. `policy` and `reward` name the variants of the config (`Study.variants`)
    that the SFT policy and the reward model are made with. `settings`, where given, stand in the
    place of the grid in a study without rungs. `tuning_seeds`, where given, stand in the place of
    the last rung's; `choose` names what a setting is chosen by: the "mean" of its seeds or the
    "worst". `derive` gives the setting of a cell from the result of the arm `derived_from`: of the
    same seed, or of the one so many places later among the study's seeds, the first after the last.
    """

    name: str
    algorithm: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    follows: str = ""
    policy: str = ""
    reward: str = ""
    settings: tuple[Setting, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    choose: str = "mean"
    derived_from: str = ""
    derive: Callable[[Mapping[str, Any]], Setting] | None = None
    seeds_later: int = 0


@dataclass(frozen=True)
class Rung:
    """A step of successive halving: updates of a cell, its seeds, and how many settings of an arm
    go on.
    """

    num_updates: int
    seeds: tuple[int, ...]
    keep: int


class Measure(Protocol):
    """A study's own measure of a cell: takes the events of its loop, and ends with figures for its
    line that the metrics do not have.
    """

    def take(self, program: Program, event: Event) -> None:
        """Reads one event. The next update donates its states.

        Args:
          program: the compiled calls of the cell.
          event: of the loop, before it is recorded.
        """

    def figures(self) -> Mapping[str, Any]:
        """Figures of the whole run, as JSON can say them."""
        ...


@dataclass(frozen=True)
class Study:
    """A protocol. `grid` has the values of each key that is varied; a key in `open_ended` may be
    widened past its ends.

    `factors` has, for a key of the grid, what an arm that follows another multiplies that arm's
    choice by. `report` is the module that writes the page. `cells` is the file with a line for each
    ended cell. Without one, or where its folder does not exist (outside of a clone), the file is in
    the study's directory. `measure` makes the measure of a cell from the params of version 0.
    """

    directory: Path
    base: Callable[[], ConfigDict]
    arms: tuple[Arm, ...]
    grid: Mapping[str, tuple[Value, ...]]
    open_ended: Mapping[str, float]  # key -> factor to the next value beyond an edge
    rungs: tuple[Rung, ...]
    report_updates: int
    report_seeds: tuple[int, ...]
    score: str = "gold_mean"
    max_widenings: int = 2
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    report: str = "rlhf_jax.sweeps.page"
    cells: Path | None = None
    measure: Callable[[Params], Measure] | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise Refusal(f"the study's arms are {names}; accepted: one or more, each name once")
        lost = [arm.follows for arm in self.arms if arm.follows and arm.follows not in names]
        if lost:
            raise Refusal(
                f"an arm follows {lost[0]!r}, which is no arm of the study; there are: "
                f"{', '.join(names)}"
            )
        if not self.rungs and self.following_arms:
            raise Refusal(
                f"arm {self.following_arms[0].name!r} follows another one's choice, but the study "
                "has no rungs to tune on"
            )
        for arm in self.arms:
            if (arm.derive is None) != (not arm.derived_from):
                raise Refusal(
                    f"arm {arm.name!r} has one of derived_from and derive; both are needed"
                )
            if arm.seeds_later and not arm.derived_from:
                raise Refusal(f"arm {arm.name!r} has seeds_later without derived_from")
            if arm.derived_from:
                self._check_derived(arm)

    def _check_derived(self, arm: Arm) -> None:
        """Raises Refusal for an arm whose setting depends on what has no one result for each seed."""
        if self.rungs:
            raise Refusal(
                f"arm {arm.name!r} has derived_from in a study with rungs; accepted: none"
            )
        source = self.arm(arm.derived_from)
        if source.derived_from or len(source.settings or self.products) != 1:
            raise Refusal(
                f"arm {arm.name!r} is derived from {source.name!r}; accepted: an arm with one "
                "setting, which is not derived itself"
            )

    def base_config(self) -> ConfigDict:
        """The config of `base`. Raises Refusal for one whose job does not train with RLHF."""
        config: Any = self.base()
        if config.job not in RLHF_JOBS:
            raise Refusal(
                f"the config of the study has job {config.job!r}, and a cell of a study trains "
                f"with RLHF; accepted: {' or '.join(RLHF_JOBS)}, or a grid over the config, which "
                "runs any job: rlhf-jax sweep CONFIG --grid KEY=VALUE,VALUE"
            )
        return config

    @property
    def tuned_arms(self) -> tuple[Arm, ...]:
        """The arms that are tuned over the grid."""
        return tuple(arm for arm in self.arms if not arm.follows)

    @property
    def following_arms(self) -> tuple[Arm, ...]:
        """The arms that are tuned over another one's choice."""
        return tuple(arm for arm in self.arms if arm.follows)

    @property
    def products(self) -> tuple[Setting, ...]:
        """Every setting of the grid."""
        return tuple(
            tuple(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        )

    def arm(self, name: str) -> Arm:
        """The arm of a name. Raises Refusal that lists the arms where there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise Refusal(
            f"the study has no arm {name!r}; there are: {', '.join(arm.name for arm in self.arms)}"
        )


@dataclass(frozen=True)
class Cell:
    """One run, over the prompts of `num_updates` updates of one epoch. `purpose` is "tune" or
    "report": they see different held-out prompts.
    """

    arm: str
    setting: Setting
    seed: int
    num_updates: int
    purpose: str

    @property
    def name(self) -> str:
        """A readable name, for folders and messages; the config's digest tells cells apart."""
        values = "_".join(shown(value) for _, value in self.setting)
        return f"{self.arm}/{values}-{self.purpose}-{self.num_updates}/{self.seed}"


def shown(value: Value) -> str:
    """A setting's value in a name: numbers with at most six digits, of several their count."""
    if isinstance(value, tuple):
        return f"{len(value)}values"
    return (
        f"{value:.6g}"
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
    )


def score_of(study: Study, result: Mapping[str, Any]) -> float:
    """The figure by which settings are chosen, at the end of a cell; -inf for one that diverged.

    Args:
      study: for the name of its score.
      result: the cell's line.
    """
    return -math.inf if result.get("diverged") else result["curve"][-1][study.score]


def tuning_seeds(arm: Arm, rung: Rung) -> tuple[int, ...]:
    return arm.tuning_seeds or rung.seeds


def setting_score(study: Study, ended: Ended, arm: Arm, setting: Setting, rung: Rung) -> float:
    """The score of a setting over a rung's seeds: their mean, or the worst if the arm wants that.

    Args:
      study: for its score.
      ended: the result of a cell; None for one that has not ended.
      arm: of the setting.
      setting: values by key.
      rung: its seeds and number of updates; all of its cells have ended.
    """
    scores = []
    for seed in tuning_seeds(arm, rung):
        result = ended(Cell(arm.name, setting, seed, rung.num_updates, "tune"))
        assert result is not None, f"{arm.name} {setting} {seed} has not ended"
        scores.append(score_of(study, result))
    return min(scores) if arm.choose == "worst" else sum(scores) / len(scores)


def tuning(study: Study, ended: Ended) -> Iterator[list[Cell]]:
    """The cells of each step of tuning; the next step is asked for when these have ended."""
    if not study.rungs:
        return
    alive = {arm.name: list(study.products) for arm in study.tuned_arms}
    last = study.rungs[-1]
    for rung in study.rungs:
        yield _cells(study, alive, rung)
        if rung is last:
            searched = {arm.name: list(study.products) for arm in study.tuned_arms}
            yield from _widening(study, ended, study.tuned_arms, alive, searched, rung)
        for arm in study.tuned_arms:
            ranked = sorted(
                alive[arm.name], key=lambda s, a=arm, r=rung: -setting_score(study, ended, a, s, r)
            )
            alive[arm.name] = ranked[: rung.keep]
    if study.following_arms:
        chosen = {arm: settings[0] for arm, settings in alive.items()}
        following = {arm.name: scaled(study, chosen[arm.follows]) for arm in study.following_arms}
        yield _cells(study, following, last)
        searched = {arm: list(settings) for arm, settings in following.items()}
        yield from _widening(study, ended, study.following_arms, following, searched, last)


def _widening(
    study: Study,
    ended: Ended,
    arms: Sequence[Arm],
    alive: dict[str, list[Setting]],
    searched: dict[str, list[Setting]],
    rung: Rung,
) -> Iterator[list[Cell]]:
    """Steps past the edges of what was searched on which best settings lie; `alive` and `searched`
    gain their settings.
    """
    for _ in range(study.max_widenings):
        chosen = {arm.name: best(study, ended, arm, alive[arm.name], rung) for arm in arms}
        wider = {name: beyond(study, searched[name], setting) for name, setting in chosen.items()}
        if not any(wider.values()):
            return
        for name, settings in wider.items():
            alive[name] = alive[name] + settings
            searched[name] = searched[name] + settings
        yield _cells(study, {name: alive[name] for name in wider}, rung)


def _cells(study: Study, alive: Mapping[str, Sequence[Setting]], rung: Rung) -> list[Cell]:
    return [
        Cell(arm, setting, seed, rung.num_updates, "tune")
        for arm, settings in alive.items()
        for setting in settings
        for seed in tuning_seeds(study.arm(arm), rung)
    ]


def best(study: Study, ended: Ended, arm: Arm, settings: Sequence[Setting], rung: Rung) -> Setting:
    return max(settings, key=lambda setting: setting_score(study, ended, arm, setting, rung))


def beyond(study: Study, known: Sequence[Setting], chosen: Setting) -> list[Setting]:
    """Settings one step outside the searched range, for each key whose chosen value is at an edge.

    Args:
      study: for its open-ended keys.
      known: the settings that were searched.
      chosen: one of them.
    """
    settings = []
    for index, (key, value) in enumerate(chosen):
        if key not in study.open_ended or not isinstance(value, int | float):
            continue
        values = [
            known_value
            for setting in known
            for name, known_value in setting
            if name == key and isinstance(known_value, int | float)
        ]
        for edge, factor in (
            (max(values), study.open_ended[key]),
            (min(values), 1 / study.open_ended[key]),
        ):
            if value and value == edge:  # beyond a weight of 0 there is nothing
                settings.append((*chosen[:index], (key, value * factor), *chosen[index + 1 :]))
    return [setting for setting in settings if setting not in known]


def scaled(study: Study, setting: Setting) -> list[Setting]:
    """The settings of an arm that follows one with this setting: every product with the study's
    factors.
    """
    values = [
        tuple(value * factor for factor in study.factors[key]) if key in study.factors else (value,)  # type: ignore[operator]
        for key, value in setting
    ]
    return [
        tuple(zip(dict(setting), products, strict=True)) for products in itertools.product(*values)
    ]


def chosen_settings(study: Study, ended: Ended) -> dict[str, tuple[Setting, ...]]:
    """The settings that each arm is reported at, in the order of the arms.

    An arm has its best setting, or all of them in a study that tunes nothing.

    Args:
      study: for its arms and rungs.
      ended: the result of a cell; None for one that has not ended.
    """
    if not study.rungs:
        return {arm.name: arm.settings or study.products for arm in study.arms}
    known: dict[str, dict[Setting, None]] = {}
    for step in tuning(study, ended):
        for cell in step:
            if cell.num_updates == study.rungs[-1].num_updates:
                known.setdefault(cell.arm, {})[cell.setting] = None
    settings = {arm.name: _complete(study, ended, arm, known[arm.name]) for arm in study.arms}
    return {
        arm.name: (best(study, ended, arm, settings[arm.name], study.rungs[-1]),)
        for arm in study.arms
    }


def _complete(study: Study, ended: Ended, arm: Arm, settings: Iterable[Setting]) -> list[Setting]:
    """Those whose cells of the last rung have all ended: a rung of as many updates may have run
    fewer seeds.
    """
    rung = study.rungs[-1]
    cells = {
        s: [Cell(arm.name, s, seed, rung.num_updates, "tune") for seed in tuning_seeds(arm, rung)]
        for s in settings
    }
    return [
        setting for setting in settings if all(ended(cell) is not None for cell in cells[setting])
    ]


def report_cells(study: Study, ended: Ended) -> list[Cell]:
    """The cells of the reported seeds, those of a seed together. A derived cell is left out until
    the one that it is derived from has ended.

    Args:
      study: for its arms and reported seeds.
      ended: the result of a cell; the tuning cells must have ended.
    """
    chosen = chosen_settings(study, ended)

    def cell_of(arm: str, setting: Setting, seed: int) -> Cell:
        return Cell(arm, setting, seed, study.report_updates, "report")

    def settings(arm: Arm, seed: int) -> tuple[Setting, ...]:
        if arm.derive is None:
            return chosen[arm.name]
        place = study.report_seeds.index(seed) + arm.seeds_later
        source = study.report_seeds[place % len(study.report_seeds)]
        result = ended(cell_of(arm.derived_from, chosen[arm.derived_from][0], source))
        return () if result is None else (arm.derive(result),)

    return [
        cell_of(arm.name, setting, seed)
        for seed in study.report_seeds
        for arm in study.arms
        for setting in settings(arm, seed)
    ]


def setting_from_json(values: Iterable[tuple[str, Any]]) -> Setting:
    """The setting whose pairs went through JSON: lists become tuples again."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values)
