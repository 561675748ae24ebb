"""Says what a run is: algorithm, data, model, schedule, command, versions and devices, from its
config and its starts.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import randomness
from rlhf_jax.models.common import family as families
from rlhf_jax.records import ledger, metrics, samples, timeline
from rlhf_jax.records.jsonl import Line
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.report import page, read
from rlhf_jax.report.formats import listed
from rlhf_jax.report.read import Run
from rlhf_jax.report.units import Units, value

FILES = {
    "config.json": "every setting",
    metrics.FILE: "figures of every update and evaluation",
    samples.FILE: "completions before, during and after training",
    ledger.FILE: "every sample that was trained on",
    timeline.FILE: "when each side worked and waited",
    read.STARTS: "command, versions and devices of every start",
    "plots": "the pictures of this page as PNG",
    "tensorboard": "the figures for TensorBoard",
}
SHOWN_COMMIT = 12


def name(run: Run) -> str:
    """The run in a few words: its algorithm and task, or its directory's name."""
    algorithm, task = _algorithm(run), value(run.config, "task.name")
    return f"{algorithm} on {task}" if algorithm and task else run.title


def _algorithm(run: Run) -> str | None:
    if is_dpo(run):
        return f"offline {_dpo_name(run.config)}"
    return value(run.config, "algorithm.name")


def is_dpo(run: Run) -> bool:
    """True for a run whose policy learns from given comparisons, also before it has begun."""
    return value(run.config, "job") == read.DPO or read.trained(run.lines) == read.DPO


def _dpo_name(config: Mapping[str, Any] | None) -> str:
    return "IPO" if value(config, "dpo.loss_type") == "ipo" else "DPO"


def head(run: Run) -> list[tuple[str, str]]:
    """Names and values (markup) of what a reader needs to repeat the run; what is not recorded is
    left out.
    """
    config, start = run.config, run.starts[-1] if run.starts else {}
    count = num_params(config)
    known = {
        "Algorithm": page.text(_algorithm(run) or ""),
        "Seed": _text(config, "seed"),
        "Parameters": f"{count:,}" if count else "",
        "Started": _started(run),
        "Hardware": _device(start),
        "Versions": _versions(start),
        "Commit": _commit(start),
        "Command": f"<code>{page.text(start['command'])}</code>" if start.get("command") else "",
    }
    return [(title, markup) for title, markup in known.items() if markup]


def facts(run: Run, units: Units) -> list[tuple[str, str]]:
    """Names and values (markup) of what else is known about the run; what is not recorded is left
    out.
    """
    config, start = run.config, run.starts[-1] if run.starts else {}
    known = {
        "Run": f"<code>{page.text(run.title)}</code>",
        "Begins from": _begin(config, start),
        "Reward": "" if is_dpo(run) else _reward(config, units),
        "Model": _model(config),
        "Comparisons": _comparisons(run.directory, "policy" if is_dpo(run) else "reward model"),
        "Training": _training_on_pairs(config) if is_dpo(run) else _training(config),
        "Updates done": _updates(run.lines),
        "Files": files(run.directory),
    }
    return [(title, markup) for title, markup in known.items() if markup]


def starts(run: Run) -> str:
    """A row for each start of the run: where, on what, from which version, and what was another
    than before.
    """
    head = ("date", "host", "devices", "from", "changed", "what may change numbers from there on")
    rows = [
        [
            page.text(_date(start["date"])),
            page.text(start["host"]),
            _device(start),
            page.text(
                ", ".join(f"{stage} {version}" for stage, version in start["at"].items())
                or "the beginning"
            ),
            page.text(
                "; ".join(
                    f"{key}: {was!r} → {now!r}" for key, (was, now) in start["changed"].items()
                )
            ),
            page.text("; ".join(start["differences"])),
        ]
        for start in run.starts
        if {"date", "host", "at", "changed", "differences"} <= start.keys()
    ]
    return page.table(head, rows, ("", "", "text", "", "text", "text")) if rows else ""


def written_by() -> str:
    """The versions of the code that wrote the page, and the time."""
    versions = [
        f"{package} {version}" for package in ("rlhf_jax", "jax") if (version := _version(package))
    ]
    return f"Written by {', '.join(versions)} at {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."


def num_params(config: Mapping[str, Any] | None) -> int | None:
    """The number of params of the policy that a resolved config describes; None where the config
    does not say.
    """
    node = value(config, "model")
    if not isinstance(node, Mapping) or not value(node, "vocab_size"):
        return None
    try:
        family = families.find(node["family"])
        shape = family.config(**{field.name: node[field.name] for field in fields(family.config)})
        params = jax.eval_shape(family.make(shape).init, randomness.key(0))
    except (
        Refusal,
        ComponentError,
        KeyError,
        AttributeError,
        TypeError,
    ):  # a config of another version of the code
        return None
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def files(directory: Path) -> str:
    """Links to the files of a run that are there."""
    links = [
        f'<a href="{path}" title="{page.text(words)}">{path}</a>'
        for path, words in FILES.items()
        if (directory / path).exists()
    ]
    return ", ".join(links)


def _text(config: Mapping[str, Any] | None, path: str) -> str:
    entry = value(config, path)
    return "" if entry is None else page.text(entry)


def _begin(config: Mapping[str, Any] | None, start: Line) -> str:
    """The run that a run begins from, and where its SFT policy and reward model were made."""
    if not value(config, "begin"):
        return ""
    origins = start.get("origins") or {}
    titles = {"sft": "SFT policy", "reward_model": "reward model"}
    made = [
        f"{title} of <code>{page.text(origins[stage])}</code>"
        for stage, title in titles.items()
        if origins.get(stage)
    ]
    return f"<code>{_text(config, 'begin')}</code>" + (f" ({', '.join(made)})" if made else "")


def _reward(config: Mapping[str, Any] | None, units: Units) -> str:
    reward = value(config, "reward")
    return f"{page.text(reward)} ({page.text(units.reward.unit)})" if reward else ""


def _model(config: Mapping[str, Any] | None) -> str:
    if value(config, "model.family") is None:
        return ""
    parts = [_text(config, "model.family")]
    if value(config, "model.num_layers") and value(config, "model.width"):
        layers = value(config, "model.num_layers")
        parts.append(
            f"{page.text(layers)} layer{'s' * (layers != 1)} of width "
            f"{_text(config, 'model.width')}"
        )
    return ", ".join(parts)


def _comparisons(directory: Path, learner: str) -> str:
    counts = {
        split: path.read_bytes().count(b"\n")
        for split in ("train", "heldout")
        if (path := directory / "comparisons" / f"{split}.jsonl").exists()
    }
    words = {"train": f"to train the {learner}", "heldout": "held out"}
    return ", ".join(f"{count:,} {words[split]}" for split, count in counts.items())


def _training_on_pairs(config: Mapping[str, Any] | None) -> str:
    dpo = value(config, "dpo")
    needed = ("loss_type", "beta", "label_smoothing", "pairs_per_update")
    if not isinstance(dpo, Mapping) or any(key not in dpo for key in needed):
        return ""
    smoothing = f", label smoothing {dpo['label_smoothing']:g}" if dpo["label_smoothing"] else ""
    return page.text(
        f"{dpo['pairs_per_update']} pairs per update, loss {dpo['loss_type']}, "
        f"β {dpo['beta']:g}{smoothing}"
    )


def _training(config: Mapping[str, Any] | None) -> str:
    rlhf = value(config, "rlhf")
    needed = ("prompts_per_update", "samples_per_prompt", "loop", "lag", "clock")
    if not isinstance(rlhf, Mapping) or any(key not in rlhf for key in needed):
        return ""
    clock = "" if rlhf["clock"] == "exact" else f", {page.text(rlhf['clock'])} clock"
    return (
        f"{rlhf['prompts_per_update']} prompts × {rlhf['samples_per_prompt']} samples per update, "
        f"{page.text(rlhf['loop'])} "
        f"loop, lag {rlhf['lag']}{clock}"
    )


def _updates(lines: Sequence[Line]) -> str:
    counts = [(stage, len(read.updates(lines, stage))) for stage in read.stages(lines)]
    return " · ".join(f"{page.text(stage)} {count}" for stage, count in counts if count)


def _started(run: Run) -> str:
    dates = [_date(start["date"]) for start in run.starts if start.get("date")]
    if dates:
        again = f"; {len(dates)} starts, the last at {dates[-1]}" if len(dates) > 1 else ""
        return page.text(dates[0] + again)
    began = list(dict.fromkeys(span["began"] for span in run.spans))
    times = [f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" for seconds in began]
    return f"RLHF at {listed(times)}" if times else ""


def _date(text: str) -> str:
    return text.replace("T", " ").replace("+00:00", " UTC")


def _commit(start: Line) -> str:
    digits, mark, _ = str(start.get("commit") or "").partition("+")
    changed = " with changes" if mark else ""
    return f"<code>{page.text(digits[:SHOWN_COMMIT])}</code>{changed}" if digits else ""


def _versions(start: Line) -> str:
    """This library, Python, and the packages that numbers depend on."""
    known = {"rlhf_jax": start.get("version"), "python": value(start, "environment.python")}
    known |= value(start, "environment.versions") or {}
    return page.text(
        ", ".join(f"{package} {version}" for package, version in known.items() if version)
    )


def _device(start: Line) -> str:
    environment = start.get("environment") or {}
    if not environment.get("device"):
        return ""
    hosts = environment.get("num_processes", 1)
    text = f"{environment.get('num_devices', 1)} × {environment['device']}"
    text += f" on {hosts} hosts" if hosts > 1 else ""
    if environment.get("processor"):
        text += f"; {environment['processor']}, {environment.get('cores')} cores"
    return page.text(text)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
