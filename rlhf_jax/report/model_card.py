"""The model card of an exported folder: base, data, algorithm, lag, figures and command, from what
the run directory records.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlhf_jax
from rlhf_jax.records.jsonl import Line
from rlhf_jax.report import glossary, identity, read, rendering, units
from rlhf_jax.report.elements import Table
from rlhf_jax.report.formats import cells
from rlhf_jax.report.identity import Fact
from rlhf_jax.report.read import Run
from rlhf_jax.report.units import Units, value

TEMPLATE = "templates/model_card.md.jinja"
REWARD_MODEL = "reward_model"
OF_COMPARISONS = (REWARD_MODEL, read.DPO)
PLACES = ("cache_dir",)
"""Settings of a task that say nothing of its data."""


def text(
    directory: Path,
    stage: str,
    version: int | None,
    folder: Path,
    has_tokenizer: bool,
    is_adapter: bool = False,
) -> str:
    """The card, in Markdown. What the run has not recorded is left out.

    Args:
      directory: of the run.
      stage: whose params are exported: sft, reward_model, rlhf or dpo.
      version: of the policy of the stage rlhf or dpo; None for other stages.
      folder: that is written.
      has_tokenizer: True where the folder has the files of a tokenizer.
      is_adapter: True for a folder of PEFT.

    Raises MissingInput where the directory holds no run, Refusal for a broken file in it.
    """
    run = read.read_run(directory)
    measured = units.resolve(run.config, run.lines, run.samples)
    before, after = _evaluations(run, stage, version)
    commands = dict.fromkeys(start["command"] for start in run.starts if start.get("command"))
    return rendering.render(
        TEMPLATE,
        title=f"{identity.name(run)}: {_name(stage, version)}",
        is_reward_model=stage == REWARD_MODEL,
        is_adapter=is_adapter,
        facts=[fact for fact in _facts(run, stage, measured) if fact.value],
        figures=_figures(before, after, measured),
        interval=measured.half,
        commands=list(commands),
        folder=folder.name,
        has_tokenizer=has_tokenizer,
        exported_by=f"rlhf_jax {rlhf_jax.__version__}",
    )


def _name(stage: str, version: int | None) -> str:
    if stage == REWARD_MODEL:
        return "the reward model"
    return "the SFT policy" if version is None else f"version {version} of the policy"


def _facts(run: Run, stage: str, measured: Units) -> list[Fact]:
    config, start = run.config, run.starts[-1] if run.starts else {}
    is_trained_by_reward = stage == read.TRAINED
    learner = "policy" if identity.is_dpo(run) else "reward model"
    uses_pairs = stage in OF_COMPARISONS or value(config, "reward") == "learned"
    facts = [
        Fact("Base", _base(config, stage)),
        Fact("Begins from", identity.begin(config, start)),
        Fact("Data", _data(config)),
    ]
    if uses_pairs and stage != read.BASE:
        facts.append(Fact("Comparisons", identity.comparisons(run.directory, learner)))
    facts.append(Fact("Algorithm", _algorithm(run, stage)))
    if is_trained_by_reward:
        facts += [
            Fact("Reward", identity.reward(config, measured)),
            Fact("Lag", _lag(config)),
            Fact("Training", identity.training(config)),
        ]
    known = {"Algorithm", "Command"}  # said above and below
    if stage == REWARD_MODEL:
        known.add("Parameters")  # are the policy's
    return facts + [fact for fact in identity.head(run) if fact.title not in known]


def _base(config: Mapping[str, Any] | None, stage: str) -> str:
    """The folder that the params began with, and the model."""
    if stage == REWARD_MODEL and value(config, "pretrained.reward_model"):
        return value(config, "pretrained.reward_model")
    folders = [value(config, "pretrained.base"), value(config, "pretrained.sft")]
    given = [folder for folder in folders if folder]
    described = identity.model(config)
    dtype = value(config, "lora.base_dtype")
    held = f"; adapters were trained on its linear layers in {dtype}" if dtype else ""
    if given:
        return (f"{given[-1]} ({described})" if described else given[-1]) + held
    return f"none: {described}, trained from scratch{held}" if described else ""


def _data(config: Mapping[str, Any] | None) -> str:
    task = value(config, "task")
    if not isinstance(task, Mapping) or not task.get("name"):
        return ""
    return _with_settings(task["name"], {k: v for k, v in task.items() if k not in PLACES})


def _algorithm(run: Run, stage: str) -> str:
    if stage == read.TRAINED:
        node = value(run.config, "algorithm")
        return _with_settings(node["name"], node) if isinstance(node, Mapping) else ""
    if stage == read.DPO:
        return ": ".join(filter(None, (identity.algorithm(run), identity.pairs(run.config))))
    return {read.BASE: "supervised fine-tuning", REWARD_MODEL: "pairwise logistic loss"}[stage]


def _with_settings(name: str, settings: Mapping[str, Any]) -> str:
    """A component and its settings that are not empty."""
    shown = [
        f"{key} {setting}"
        for key, setting in settings.items()
        if key != "name" and setting not in ("", None, {}, [])
    ]
    return f"{name} ({', '.join(shown)})" if shown else name


def _lag(config: Mapping[str, Any] | None) -> str:
    lag, loop, clock = (value(config, f"rlhf.{key}") for key in ("lag", "loop", "clock"))
    return (
        ""
        if lag is None
        else ", ".join(
            filter(
                None,
                (
                    str(lag),
                    loop and f"{loop} loop",
                    clock and f"{clock} clock",
                    *identity.clock_words(config),
                ),
            )
        )
    )


def _evaluations(run: Run, stage: str, version: int | None) -> tuple[Line | None, Line | None]:
    """The evaluation of version 0 of a policy, and that of what is exported; None where there is
    none.
    """
    if version is None:
        evaluated = read.evaluations(run.lines, stage)
        if stage == read.BASE and not evaluated and not value(run.config, "begin"):
            evaluated = [line for line in read.policy_evaluations(run.lines) if not line["update"]]
        return None, next(reversed(evaluated), None)
    evaluated = read.policy_evaluations(run.lines, stage)
    at = {line["update"]: line for line in evaluated}
    return (at.get(0) if version else None), at.get(version)


def _figures(before: Line | None, after: Line | None, measured: Units) -> Table | None:
    """A row for each figure of the evaluation: of version 0 and of what is exported."""
    if after is None:
        return None
    lines = [line for line in (before, after) if line is not None]
    head = ("figure", *(f"version {line['update']}" for line in lines))
    rows = [
        (glossary.title(name, measured), *cells(lines, name))
        for name in read.figure_names([after])
        if after.get(name) is not None
    ]
    return Table(head, ("", *("number" for _ in lines)), rows)
