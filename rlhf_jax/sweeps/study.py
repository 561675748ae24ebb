"""The protocol of a study: arms, the grid that each is tuned on, and its seeds. `steps.py` has the
cells that all this asks for.

Cells of one seed share SFT policy, reward model and prompts. Without rungs nothing is tuned: every
arm runs at every setting of the grid on the reported seeds. With rungs, every arm's setting is
chosen by successive halving over the grid, on seeds and held-out prompts that are not reported; a
best setting on an edge of the grid widens the grid there. An arm that follows another is tuned
after it, over that arm's choice times a few factors, widened in the same way. Then every arm runs
on the reported seeds. The protocol is asked for its next step when the cells of the last one have
ended.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
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


def setting_from_json(values: Iterable[tuple[str, Any]]) -> Setting:
    """The setting whose pairs went through JSON: lists become tuples again."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values)
