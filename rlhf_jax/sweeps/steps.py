"""The cells of a study that are to be run next: those that settings are chosen by, and then those that
are reported.

Settings are chosen by successive halving over the grid (`study.py`): every step keeps the best ones.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_jax.sweeps.study import Arm, Cell, Ended, Rung, Setting, Study


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
