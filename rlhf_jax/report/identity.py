"""Says what a run is: algorithm, data, model, schedule, command, versions and devices, from its
config and its starts.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from rlhf_jax import randomness
from rlhf_jax.models.common import family as families
from rlhf_jax.records import ledger, metrics, samples, timeline
from rlhf_jax.records.jsonl import Line
from rlhf_jax.refusal import ComponentError, Refusal
from rlhf_jax.report import read
from rlhf_jax.report.elements import Table
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


@dataclass(frozen=True)
class Fact:
    """A name and its value, a text; `code` is set in a fixed width."""

    title: str
    value: str
    code: bool = False


def name(run: Run) -> str:
    """The run in a few words: its algorithm and task, or its directory's name."""
    trained_by, task = algorithm(run), value(run.config, "task.name")
    return f"{trained_by} on {task}" if trained_by and task else run.title


def algorithm(run: Run) -> str:
    """The name of the algorithm that trains the policy; "" where it is not recorded."""
    if is_dpo(run):
        return f"offline {_dpo_name(run.config)}"
    return _text(run.config, "algorithm.name")


def is_dpo(run: Run) -> bool:
    """True for a run whose policy learns from given comparisons, also before it has begun."""
    return value(run.config, "job") == read.DPO or read.trained(run.lines) == read.DPO


def _dpo_name(config: Mapping[str, Any] | None) -> str:
    return "IPO" if value(config, "dpo.loss_type") == "ipo" else "DPO"


def head(run: Run) -> list[Fact]:
    """The facts that a reader needs to repeat the run; one that is not recorded is left out."""
    config, start = run.config, run.starts[-1] if run.starts else {}
    count = num_params(config)
    known = (
        Fact("Algorithm", algorithm(run)),
        Fact("Seed", _text(config, "seed")),
        Fact("Parameters", f"{count:,}" if count else ""),
        Fact("Started", _started(run)),
        Fact("Hardware", device(start)),
        Fact("Versions", _versions(start)),
        Fact("Commit", _commit(start), code=True),
        Fact("Command", start.get("command") or "", code=True),
    )
    return [fact for fact in known if fact.value]


def facts(run: Run, units: Units) -> list[Fact]:
    """The other facts of the run; one that is not recorded is left out."""
    config, start = run.config, run.starts[-1] if run.starts else {}
    known = (
        Fact("Run", run.title, code=True),
        Fact("Begins from", begin(config, start)),
        Fact("Reward", "" if is_dpo(run) else reward(config, units)),
        Fact("Model", model(config)),
        Fact(
            "Comparisons", comparisons(run.directory, "policy" if is_dpo(run) else "reward model")
        ),
        Fact("Training", pairs(config) if is_dpo(run) else training(config)),
        Fact("Updates done", _updates(run.lines)),
    )
    return [fact for fact in known if fact.value]


def starts(run: Run) -> Table | None:
    """A row for each start of the run: date, host, devices, version that it began from, and changes
    since the start before.
    """
    head = ("date", "host", "devices", "from", "changed", "what may change numbers from there on")
    rows = [
        (
            _date(start["date"]),
            start["host"],
            device(start),
            ", ".join(f"{stage} {version}" for stage, version in start["at"].items())
            or "the beginning",
            "; ".join(f"{key}: {was!r} → {now!r}" for key, (was, now) in start["changed"].items()),
            "; ".join(start["differences"]),
        )
        for start in run.starts
        if {"date", "host", "at", "changed", "differences"} <= start.keys()
    ]
    kinds = ("", "", "text", "", "text", "text")
    return Table(head, kinds, rows, stack=True) if rows else None


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


def files(directory: Path) -> list[tuple[str, str]]:
    """Names of the files of a run that exist, each with its content in words."""
    return [(path, words) for path, words in FILES.items() if (directory / path).exists()]


def _text(config: Mapping[str, Any] | None, path: str) -> str:
    entry = value(config, path)
    return "" if entry is None else str(entry)


def begin(config: Mapping[str, Any] | None, start: Line) -> str:
    """The run that a run begins from, and where its SFT policy and reward model were made."""
    if not value(config, "begin"):
        return ""
    origins = start.get("origins") or {}
    titles = {"sft": "SFT policy", "reward_model": "reward model"}
    made = [f"{title} of {origins[stage]}" for stage, title in titles.items() if origins.get(stage)]
    return _text(config, "begin") + (f" ({', '.join(made)})" if made else "")


def reward(config: Mapping[str, Any] | None, units: Units) -> str:
    reward = value(config, "reward")
    return f"{reward} ({units.reward.unit})" if reward else ""


def model(config: Mapping[str, Any] | None) -> str:
    """The family, depth and width of the policy."""
    if value(config, "model.family") is None:
        return ""
    parts = [_text(config, "model.family")]
    if value(config, "model.num_layers") and value(config, "model.width"):
        layers = value(config, "model.num_layers")
        width = _text(config, "model.width")
        parts.append(f"{layers} layer{'s' * (layers != 1)} of width {width}")
    return ", ".join(parts)


def comparisons(directory: Path, learner: str) -> str:
    """The numbers of comparisons that a run directory has.

    Args:
      directory: of the run.
      learner: what is trained on them.
    """
    counts = {
        split: path.read_bytes().count(b"\n")
        for split in ("train", "heldout")
        if (path := directory / "comparisons" / f"{split}.jsonl").exists()
    }
    words = {"train": f"to train the {learner}", "heldout": "held out"}
    return ", ".join(f"{count:,} {words[split]}" for split, count in counts.items())


def pairs(config: Mapping[str, Any] | None) -> str:
    dpo = value(config, "dpo")
    needed = ("loss_type", "beta", "label_smoothing", "pairs_per_update")
    if not isinstance(dpo, Mapping) or any(key not in dpo for key in needed):
        return ""
    smoothing = f", label smoothing {dpo['label_smoothing']:g}" if dpo["label_smoothing"] else ""
    return (
        f"{dpo['pairs_per_update']} pairs per update, loss {dpo['loss_type']}, "
        f"β {dpo['beta']:g}{smoothing}"
    )


def training(config: Mapping[str, Any] | None) -> str:
    """The size of a round of RLHF, the loop and the lag."""
    rlhf = value(config, "rlhf")
    needed = ("prompts_per_update", "samples_per_prompt", "loop", "lag", "clock")
    if not isinstance(rlhf, Mapping) or any(key not in rlhf for key in needed):
        return ""
    clock = "" if rlhf["clock"] == "exact" else f", {rlhf['clock']} clock"
    words = "".join(f", {text}" for text in clock_words(config))
    return (
        f"{rlhf['prompts_per_update']} prompts × {rlhf['samples_per_prompt']} samples per update, "
        f"{rlhf['loop']} loop, lag {rlhf['lag']}{clock}{words}"
    )


def clock_words(config: Mapping[str, Any] | None) -> list[str]:
    """The settings of the clock beside the lag that are not their defaults, in words; of a config
    of an older release, which lacks them, none.
    """
    every, staged, buffered, draw = (
        value(config, f"rlhf.{key}")
        for key in ("sync_every", "staged", "buffer_rounds", "buffer_draw")
    )
    words = [f"sampler renewed every {every} rounds"] if every and every > 1 else []
    if staged and staged != "none":
        words.append(f"stages {staged.replace('_', ' ')}")
    if buffered:
        words.append(f"buffer of {buffered} round(s), drawn {str(draw).replace('_', ' ')}")
    oversample = value(config, "rlhf.oversample")
    if oversample and oversample > 1:
        words.append(f"{oversample} prompts sampled for each that is kept")
    return words


def _updates(lines: Sequence[Line]) -> str:
    counts = [(stage, len(read.updates(lines, stage))) for stage in read.stages(lines)]
    return " · ".join(f"{stage} {count}" for stage, count in counts if count)


def _started(run: Run) -> str:
    dates = [_date(start["date"]) for start in run.starts if start.get("date")]
    if dates:
        again = f"; {len(dates)} starts, the last at {dates[-1]}" if len(dates) > 1 else ""
        return dates[0] + again
    began = list(dict.fromkeys(span["began"] for span in run.spans))
    times = [f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC" for seconds in began]
    return f"RLHF at {listed(times)}" if times else ""


def _date(text: str) -> str:
    return text.replace("T", " ").replace("+00:00", " UTC")


def _commit(start: Line) -> str:
    digits, mark, _ = str(start.get("commit") or "").partition("+")
    return digits[:SHOWN_COMMIT] + (" with changes" if digits and mark else "")


def _versions(start: Line) -> str:
    """This library, Python, and the packages that numbers depend on."""
    known = {"rlhf_jax": start.get("version"), "python": value(start, "environment.python")}
    known |= value(start, "environment.versions") or {}
    return ", ".join(f"{package} {version}" for package, version in known.items() if version)


def device(start: Line) -> str:
    """The devices and the processor of a start; "" where they are not recorded."""
    environment = start.get("environment") or {}
    if not environment.get("device"):
        return ""
    hosts = environment.get("num_processes", 1)
    text = f"{environment.get('num_devices', 1)} × {environment['device']}"
    text += f" on {hosts} hosts" if hosts > 1 else ""
    if environment.get("processor"):
        text += f"; {environment['processor']}, {environment.get('cores')} cores"
    return text


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
