"""Records of the settings that each stage was made with: written beside its checkpoints, compared
whenever they are used.

The record is `.made_with.json` in `checkpoints/<stage>/` (in the folders of `OWN_FOLDERS`), so
that it goes along where a stage is copied: {"config": keys that enter the stage's numbers,
"digests": of places among them, "directory": where}.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from rlhf_jax.config import flatten
from rlhf_jax.devices import distributed
from rlhf_jax.records import checkpoints
from rlhf_jax.records.jsonl import replace
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.run_directory import component_names, history, keys, run_config
from rlhf_jax.run_directory.keys import Class

FILE = ".made_with.json"
DATA = "data"
CODE = "code"
OWN_CODE = f"{CODE}."
"""Before the key that names a component which is not of the package; the rest of the digest's name
is that key.
"""
CONFIG = "config"
FINISHED_BY = {
    "reward_model": ("reward_model.json",),
    "comparisons": ("comparisons/train.jsonl", "comparisons/heldout.jsonl"),
    "prompt_values": ("prompt_values/ended.json",),
}
"""The files that a stage writes when it ends. The prompt values of a run that has grown go on."""
OWN_FOLDERS = ("comparisons", "prompt_values")
"""Stages without checkpoints: their files are in a folder of their name."""
NUM_UPDATES = {
    "sft": "sft.num_updates",
    "reward_model": "reward_model.num_updates",
    "dpo": "dpo.num_updates",
}
"""Keys of the version that is a stage's last: it has ended only where that checkpoint is there and
whole.
"""
COMPARED = (Class.NUMBERS, Class.EXTENDING, Class.COMPUTED)
NAMES = {
    "algorithm.name": "algorithm",
    "task.name": "task",
    "model.family": "model",
    "reward": "reward_settings",
}
"""If one of these keys has changed, changes of the node's other keys are not listed."""


@dataclass(frozen=True)
class Facts:
    """The facts of a run: the flattened config, digests by name, and the defaults of the config's
    components.

    Values are as JSON has them. A digest has the name of its key, or is of `data`, the tokenizer,
    the `code`, or the config.
    """

    values: Mapping[str, Any]
    digests: Mapping[str, str]
    defaults: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """The record of a stage: its config and digests, and the file that they were read from."""

    source: Path
    config: Mapping[str, Any]
    digests: Mapping[str, str]


MISSING = object()
"""The value of a missing key."""


@dataclass(frozen=True)
class Change:
    """A key, or the content that it names, which has changed since a stage was made."""

    key: str
    was: Any  # values of JSON
    now: Any
    stage: str = ""
    content: bool = False

    def __str__(self) -> str:
        if self.content:
            return (
                "the task's data (changed since)"
                if self.key == DATA
                else f"{self.key} (other content than there)"
            )
        return f"{self.key} ({_shown(self.was)} there, {_shown(self.now)} now)"


def _shown(value: object) -> str:
    return "no such key" if value is MISSING else repr(value)


def folder(directory: Path, stage: str) -> Path:
    """The folder of a stage's results.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
    """
    return directory / stage if stage in OWN_FOLDERS else directory / "checkpoints" / stage


def steps(directory: Path, stage: str) -> list[int]:
    """Versions of a stage's checkpoints, oldest first; none for a stage without checkpoints.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
    """
    stage_folder = folder(directory, stage)
    return (
        sorted(ocp.utils.checkpoint_steps(stage_folder))
        if stage not in OWN_FOLDERS and stage_folder.exists()
        else []
    )


def policy_stage(directory: Path) -> str:
    """The stage whose policy a run has: "dpo" where that has a checkpoint, else "rlhf"."""
    return "dpo" if steps(directory, "dpo") else "rlhf"


def policy_steps(directory: Path) -> list[int]:
    """Versions of a run's saved policies, oldest first; empty where there is none."""
    return steps(directory, policy_stage(directory))


def begun(directory: Path, stage: str) -> bool:
    """True where a stage has left results that a next start would go on from.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
    """
    if stage == "prompt_values":
        return any(folder(directory, stage).glob("*.npz"))
    return bool(steps(directory, stage)) or any(
        (directory / name).exists() for name in FINISHED_BY.get(stage, ())
    )


def finished(directory: Path, stage: str, values: Mapping[str, Any]) -> bool:
    """True for a stage that has ended, so that its results are used unchanged.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
      values: the flattened config of the run.
    """
    return not unfinished(directory, stage, values)


def unfinished(directory: Path, stage: str, values: Mapping[str, Any] | None = None) -> str:
    """Returns what a stage lacks to have ended, or "".

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`. RLHF never ends: its run may grow.
      values: the flattened config of the run; by default what the stage's record says.
    """
    missing = [name for name in FINISHED_BY.get(stage, ()) if not (directory / name).exists()]
    if missing:
        return f"{directory / missing[0]} is missing"
    if stage not in NUM_UPDATES:
        return "" if stage in FINISHED_BY else f"{stage} may grow"
    if values is None:
        record = read(directory, stage)
        values = history.translated(record.config, str(record.source)) if record else {}
    if stage == "reward_model" and values.get("pretrained.reward_model"):
        return ""
    if not (newest := max(steps(directory, stage), default=0)):
        return f"no complete checkpoint in {folder(directory, stage)}"
    num_updates = values.get(NUM_UPDATES[stage])
    if num_updates is not None and newest != num_updates:
        return f"{folder(directory, stage)} has {newest} of {num_updates} updates"
    damage = checkpoints.problem_of(folder(directory, stage), newest)
    return f"checkpoint {newest} is damaged: {damage}" if damage else ""


def check_finished(directory: Path, stage: str) -> None:
    """Raises MissingInput, with the command that ends it, for a stage that has not ended.

    Several processes agree on it.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
    """
    if problem := distributed.agree(unfinished(directory, stage)[:300]):
        raise MissingInput(
            f"the stage {stage!r} of {directory} has not ended ({problem}): run it to its end "
            f"first (--config.job={stage})"
        )


def newest_versions(directory: Path) -> dict[str, int]:
    """{stage: version of its newest checkpoint} of the stages that have one."""
    return {stage: versions[-1] for stage in keys.STAGES if (versions := steps(directory, stage))}


def write(directory: Path, stage: str, facts: Facts | None) -> None:
    """Records the config and digests that a stage is made with, when it begins or goes on.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.
      facts: of the run; None: nothing is recorded.
    """
    if facts is None:
        return
    path = folder(directory, stage) / FILE
    digests = {
        name: digest for name, digest in facts.digests.items() if _digest_enters(name, stage)
    }
    record = {
        "config": _entering(facts.values, stage),
        "digests": digests,
        "directory": str(directory.absolute()),
    }
    data = json.dumps(record, indent=1, sort_keys=True).encode()
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, data)


def read(directory: Path, stage: str) -> Record | None:
    """Reads the record of a stage: its own, else the directory's config, else None.

    Args:
      directory: of the run.
      stage: one of `keys.STAGES`.

    Raises Refusal for a record that is damaged.
    """
    path = folder(directory, stage) / FILE
    if path.exists():
        try:
            record = json.loads(path.read_bytes())
            return Record(path, record["config"], history.renamed(record["digests"]))
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(
                f"{path}, which says what the stage was made with, is damaged ({error}); restore "
                "it, or remove it to take the "
                "stage as made with this config"
            ) from None
    if (directory / run_config.FILE).exists():
        values, digests = run_config.read(directory)
        return Record(directory / run_config.FILE, flatten(values), digests)
    return None


def origin(directory: Path, stage: str) -> Path | None:
    """The directory that a stage was made in, by its record; None where nothing says so."""
    try:
        record = json.loads((folder(directory, stage) / FILE).read_bytes())
        return Path(record["directory"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def changes(record: Record, facts: Facts, stage: str) -> list[Change]:
    """Finds the keys and contents that enter a stage's numbers and have changed since the stage was
    made.

    A key that is newer than the record has the value that equals the behaviour of the code before
    the key.

    Args:
      record: of the stage.
      facts: of the run now.
      stage: one of `keys.STAGES`.

    Raises Refusal as `history.translated`.
    """
    stored = history.translated(record.config, str(record.source))
    was, now = _entering(stored, stage), _entering(facts.values, stage)
    for key in now.keys() - was.keys():
        was[key] = history.older_value(key, facts.defaults.get(key, MISSING))
    for key, path in stored.items():  # of a run without digests
        if (
            keys.class_of(key) is Class.PLACE
            and keys.enters(key, stage)
            and _digest_of(key) not in record.digests
        ):
            was[key], now[key] = path, facts.values.get(key, MISSING)
    changed = [
        Change(key, was.get(key, MISSING), now.get(key, MISSING), stage)
        for key in sorted(was.keys() | now.keys())
        if not component_names.same(key, was.get(key, MISSING), now.get(key, MISSING))
    ]
    renamed = {NAMES[change.key] for change in changed if change.key in NAMES}
    changed = [
        change
        for change in changed
        if change.key in NAMES or change.key.partition(".")[0] not in renamed
    ]
    for name, digest in sorted(record.digests.items()):
        if _digest_enters(name, stage) and facts.digests.get(name, digest) != digest:
            changed.append(Change(name, digest, facts.digests[name], stage, content=True))
    return changed


def _digest_of(key: str) -> str:
    """The name of the digest that stands for the content of a place."""
    return DATA if key.startswith("task.") else key


def _entering(values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return {
        key: value
        for key, value in values.items()
        if keys.class_of(key) in COMPARED and keys.enters(key, stage)
    }


def _digest_enters(name: str, stage: str) -> bool:
    """Digests of code are told and not compared; that of the config is of keys which are compared
    one by one.
    """
    return name not in (CODE, CONFIG) and not name.startswith(OWN_CODE) and keys.enters(name, stage)
