"""The run that another one begins from: its SFT policy and reward model, and the policy of one of
its versions.

    begin=RUN            RUN's SFT policy and reward model, as if this run had trained them
    begin=RUN@version    and the policy begins as that version, with a fresh optimizer, as version 0; the KL reference stays
                         RUN's SFT policy, and a critic begins as in any run

A run without a reward model leaves it to be trained here. RUN may itself have begun from another
run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.config import fill, flatten
from rlhf_jax.models.common import adapters
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common import terms
from rlhf_jax.run_directory import digests, stage_records
from rlhf_jax.run_directory.stage_records import DATA, Facts, Record
from rlhf_jax.stages.common import pretrained_models

SAME = ("model", "tokenizer", "task", "pretrained", DATA)
"""Nodes of the config that must be those of the run which is begun from.

Its pretrained.gold need not be.
"""

ADAPTERS = ("rank", "alpha", "targets", "base_dtype")
"""Keys of `lora` that say what an adapter is, and the base that it is on."""


@dataclass(frozen=True)
class Begin:
    """A run's directory, which of its versions the policy begins as (None: its SFT policy), and
    what the run says of itself.
    """

    text: str
    directory: Path
    version: int | None
    values: dict[str, Any]  # its config, under today's keys
    digests: dict[str, str]
    inner: "Begin | None"  # what it began from itself

    @property
    def pretrained(self) -> pretrained_models.Config:
        """The published folders of that run."""
        return fill(pretrained_models.Config, self.values["pretrained"], "pretrained")

    @property
    def lora(self) -> adapters.Config:
        """The adapters of that run."""
        return fill(adapters.Config, self.values["lora"], "lora")


def parse(text: str) -> tuple[Path, int | None]:
    """The directory and the version of `RUN` or `RUN@version`.

    A directory whose own name ends so is taken as it is.
    """
    run, at, version = text.rpartition("@")
    if at and run and version.isdecimal() and not Path(text).is_dir():
        return Path(run), int(version)
    return Path(text), None


def check(begin: Begin, facts: Facts, own_directory: Path) -> None:
    """Raises Refusal where that run has another model, tokenizer or task, MissingInput where it
    lacks what is to be taken.
    """
    record = Record(begin.directory / "config.json", flatten(begin.values), begin.digests)
    others = [
        change
        for change in stage_records.changes(record, facts, "sft")
        if change.key.partition(".")[0] in SAME
    ]
    if others:
        raise Refusal(
            f"begin is {begin.text!r}, a run of another kind: {', '.join(map(str, others[:6]))}; "
            "accepted: a run of the same "
            "model, tokenizer and task (experiments.export makes a folder of its policy, which "
            "pretrained.sft takes)"
        )
    _check_adapters(begin, facts)
    root, judge = _root(begin), _judge(begin)
    if not root.pretrained.sft:
        _check_finished(begin, root, "sft")
    rewards = [term.name for term in terms.parse(facts.values["reward"])]
    if judge is not None and LEARNED in rewards and facts.values["job"] != "dpo":
        _check_finished(begin, judge, "reward_model")
    versions = stage_records.policy_steps(begin.directory)
    goes_on = bool(
        stage_records.policy_steps(own_directory)
    )  # from its own checkpoints, which need no first policy
    if begin.version and begin.version not in versions and not goes_on:
        there = ", ".join(map(str, versions)) or "none"
        raise MissingInput(
            f"begin is {begin.text!r}, but {begin.directory} has no version {begin.version}; it "
            f"has: {there}"
        )


def _check_adapters(begin: Begin, facts: Facts) -> None:
    """Raises Refusal where the adapters of that run cannot become those of this one."""
    theirs, ours = begin.lora, {key: facts.values[f"lora.{key}"] for key in ADAPTERS}
    differing = [key for key in ADAPTERS if getattr(theirs, key) != ours[key]]
    if theirs.rank and differing:
        key = differing[0]
        raise Refusal(
            f"begin is {begin.text!r}, whose lora.{key} is {getattr(theirs, key)!r}, and here it is "
            f"{ours[key]!r}; accepted: the same adapters, or pretrained.sft with a folder of its "
            "merged policy (experiments.export)"
        )
    if ours["rank"] and not theirs.rank and begin.version:
        raise Refusal(
            f"begin is {begin.text!r}, a version of a run without adapters, and lora.rank is "
            f"{ours['rank']}: the KL reference would need another base; accepted: "
            f"begin={begin.directory} for its SFT policy, or pretrained.sft with a folder of that "
            "version (experiments.export)"
        )


def _check_finished(begin: Begin, owner: Begin, stage: str) -> None:
    """Raises MissingInput where a stage of the run that has it, which may be further back, has not
    ended.
    """
    if problem := stage_records.unfinished(owner.directory, stage, flatten(owner.values)):
        raise MissingInput(
            f"begin is {begin.text!r}, but the stage {stage!r} of {owner.directory} has not ended "
            f"({problem}): run it to its "
            f"end first (--config.job={stage} --config.directory={owner.directory})"
        )


def of_content(begin: Begin) -> dict[str, str]:
    """Digests of what is taken from that run. What it does not have (yet, or any more) has none."""
    root = _root(begin)
    if root.pretrained.sft:
        digest_by_key = {"begin": digests.digest_path(root.pretrained.sft)}
    else:
        digest_by_key = {
            "begin": _of_checkpoint(
                root.directory, "sft", stage_records.steps(root.directory, "sft")[-1]
            )
        }
    judge = _judge(begin)
    if judge is not None:
        unit_digest = digests.digest_file(judge.directory / "reward_model.json")
        steps = stage_records.steps(judge.directory, "reward_model")
        weights = _of_checkpoint(judge.directory, "reward_model", steps[-1]) if steps else ""
        digest_by_key["begin.reward_model"] = digests.digest_text(unit_digest, weights)
    if begin.version and begin.version in stage_records.policy_steps(begin.directory):
        stage = stage_records.policy_stage(begin.directory)
        digest_by_key["begin.version"] = _of_checkpoint(begin.directory, stage, begin.version)
    return digest_by_key


def taken(begin: Begin | None) -> frozenset[str]:
    """The stages that need not be run because the run that is begun from has their results."""
    if begin is None:
        return frozenset()
    return frozenset({"sft"} if _judge(begin) is None else {"sft", "comparisons", "reward_model"})


def origins(begin: Begin | None) -> dict[str, str]:
    """Directories, or the published folder, that a run's SFT policy and reward model come from.

    Empty for a run that trains its own.
    """
    if begin is None:
        return {}
    root, judge = _root(begin), _judge(begin)
    found = {"sft": root.pretrained.sft or str(root.directory)}
    return found | ({} if judge is None else {"reward_model": str(judge.directory)})


def _judge(begin: Begin | None) -> Begin | None:
    """The run whose reward model it is; None where no run has one."""
    while begin is not None and not (begin.directory / "reward_model.json").exists():
        begin = begin.inner
    return begin


def _root(begin: Begin) -> Begin:
    """The run whose own SFT policy it is."""
    return begin if begin.inner is None else _root(begin.inner)


def _of_checkpoint(directory: Path, stage: str, step: int) -> str:
    return digests.digest_folder(stage_records.folder(directory, stage) / str(step))
