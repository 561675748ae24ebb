"""Files of the stage `prompt_values`, and the table that the RLHF stage reads of them.

    prompt_values/00000000.npz      consecutive prompts of RLHF's stream; named by the first ordinal
        ordinal_P   int32 [P]       places in the stream
        prompt_P    int64 [P]       indices of these prompts in the task's train split
        score_PS    float32 [P, S]  scores of S samples of the reference policy, as `credit` uses them
    prompt_values/ended.json        the number of prompts, once all of them have a file
    prompt_values/.made_with.json   see `run_directory/stage_records.py`

A file is written whole or not at all. Random keys are functions of the ordinal, so that a pass which
was killed goes on at the first file that is missing, and ends bitwise like one that was not. A split's
prompts are sampled once: later epochs of the stream have the scores of the first.

A run that begins from another one takes that run's files where they were made as this run's would be.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.algorithms.api import REFERENCE_SCORES
from rlhf_jax.devices import distributed
from rlhf_jax.records import ledger
from rlhf_jax.records.checkpoints import Damaged
from rlhf_jax.records.jsonl import replace as replace_file
from rlhf_jax.records.saved_rounds import path_of, read_arrays, write_arrays
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.rewards.api import LEARNED
from rlhf_jax.rewards.common import terms
from rlhf_jax.run_directory import keys, stage_records
from rlhf_jax.runtime.spec import ProgramSpec
from rlhf_jax.stages.api import PromptStream, Workspace
from rlhf_jax.stages.common import reward_unit
from rlhf_jax.stages.settings.rlhf import Config
from rlhf_jax.tasks.common import reading

STAGE = "prompt_values"
TAKEN = ("begin", "sft")
"""Nodes that another run's files need not agree on: a run that begins from it has its SFT policy."""


@dataclass(frozen=True)
class Pass:
    """The pass over the prompts of a run."""

    workspace: Workspace
    config: Config

    @property
    def stream(self) -> PromptStream:
        """The stream of the RLHF stage, whose ordinals its samples have."""
        return self.workspace.stream("train", ledger.STAGE)

    @property
    def num_ordinals(self) -> int:
        """T: the prompts that the run samples, one prompt as often as there are epochs."""
        return self.config.total_prompts * self.config.oversample

    @property
    def num_prompts(self) -> int:
        """Prompts that the pass samples: those of the first epoch."""
        return min(self.num_ordinals, reading.num_prompts(self.workspace.task, "train"))

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return stage_records.folder(self.workspace.directory, STAGE)

    @property
    def has_begun(self) -> bool:
        """True where there is a file; several processes agree on it."""
        return distributed.agree(stage_records.begun(self.workspace.directory, STAGE))

    def missing(self) -> list[int]:
        """First ordinals of the batches that have no file, each of `prompts_per_batch` prompts."""
        starts, ordinal = [], 0
        while ordinal < self.num_prompts:
            if (path := path_of(self.folder, ordinal)).exists():
                ordinal += self._batch(path, ordinal).shape[0]
            else:
                starts.append(ordinal)
                ordinal += self.config.prompt_values.prompts_per_batch
        return starts

    def write(self, ordinal: int, score_PS: np.ndarray) -> None:
        """Writes the scores of consecutive prompts; of several processes the first alone does.

        Args:
          ordinal: of the first.
          score_PS: of their samples.
        """
        if not distributed.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        ordinal_P = np.arange(ordinal, ordinal + score_PS.shape[0], dtype=np.int32)
        arrays = {
            "ordinal_P": ordinal_P,
            "prompt_P": self.stream.indices(ordinal, score_PS.shape[0]),
            "score_PS": score_PS,
        }
        write_arrays(path_of(self.folder, ordinal), arrays)

    def end(self) -> None:
        """Writes down that every prompt has its scores; collective."""
        (ended,) = stage_records.FINISHED_BY[STAGE]
        if distributed.is_first():
            told = json.dumps({"num_prompts": self.num_prompts}).encode()
            replace_file(self.workspace.directory / ended, told)
        distributed.barrier()

    def table(self) -> np.ndarray:
        """The scores by the ordinals of the run, float32 `[T, S]`.

        Raises MissingInput where prompts have none, Refusal as `missing`.
        """
        score_PS = np.concatenate([*self._batches()] or [np.zeros((0, 1), np.float32)])
        if score_PS.shape[0] < self.num_prompts:
            raise MissingInput(
                f"{self.folder} has the scores of {score_PS.shape[0]} of the {self.num_prompts} "
                f"prompts of the run: run the stage {STAGE!r} to its end first "
                f"(--config.job={STAGE})"
            )
        prompt_T = self.stream.indices(0, self.num_ordinals)
        row_of_prompt = np.zeros(reading.num_prompts(self.workspace.task, "train"), np.int64)
        row_of_prompt[prompt_T[: self.num_prompts]] = np.arange(self.num_prompts)
        return score_PS[row_of_prompt[prompt_T]]

    def _batches(self) -> Iterator[np.ndarray]:
        """The scores of the files before the first that is missing."""
        ordinal = 0
        while ordinal < self.num_prompts and (path := path_of(self.folder, ordinal)).exists():
            batch_PS = self._batch(path, ordinal)
            ordinal += batch_PS.shape[0]
            yield batch_PS

    def _batch(self, path: Path, ordinal: int) -> np.ndarray:
        """The scores of a file. Raises Refusal where they are not those of this run's prompts."""
        again = f"remove the file to sample its prompts again (--config.job={STAGE})"
        try:
            arrays = read_arrays(path)
            ordinal_P, prompt_P = arrays["ordinal_P"], arrays["prompt_P"]
            score_PS = arrays["score_PS"]
        except (Damaged, KeyError) as error:
            raise Refusal(f"{path} is damaged ({error}); {again}") from None
        count, num_samples = score_PS.shape[0], self.config.prompt_values.num_samples
        if not count or not np.isfinite(score_PS).all():
            raise Refusal(f"{path} is damaged (it lacks a score); {again}")
        if score_PS.shape[1] != num_samples:
            raise Refusal(
                f"{path} has {score_PS.shape[1]} scores of a prompt, and "
                f"rlhf.prompt_values.num_samples is {num_samples}; accepted: "
                f"{score_PS.shape[1]}, or a directory without {self.folder.name}"
            )
        wanted = np.arange(ordinal, ordinal + count), self.stream.indices(ordinal, count)
        if not (np.array_equal(ordinal_P, wanted[0]) and np.array_equal(prompt_P, wanted[1])):
            raise Refusal(
                f"{path} has scores of other prompts than those of the run from {ordinal} on: the "
                "task's data or the seed was another; accepted: that task and seed, or a directory "
                f"without {self.folder.name}"
            )
        return score_PS


def of_run(workspace: Workspace, config: Config) -> tuple[Pass, str]:
    """The pass whose files a run reads, and why it is not that of the run which it begins from ("":
    it is, or there is none).

    Args:
      workspace: of the run.
      config: of its RLHF stage.
    """
    own = Pass(workspace, config)
    if workspace.begin is None or own.has_begun:
        return own, ""
    source, why = of_run(workspace.source, config)
    if not source.has_begun:
        return own, why
    why = distributed.agree(_differences(workspace, source)[:300])
    return (own, why) if why else (source, "")


def _differences(workspace: Workspace, source: Pass) -> str:
    """Returns what has changed since another run's files of what enters the scores here, or ""."""
    directory = source.workspace.directory
    record, facts = stage_records.read(directory, STAGE), workspace.facts
    if record is None or facts is None:
        return ""
    changes = [
        change
        for change in stage_records.changes(record, facts, STAGE)
        if STAGE in keys.stages_of(change.key) and change.key.partition(".")[0] not in TAKEN
    ]
    judged = LEARNED in [term.name for term in terms.parse(facts.values["reward"])]
    owners = [reward_unit.owner(each).directory for each in (workspace, source.workspace)]
    texts = [str(change) for change in changes]
    if judged and owners[0] != owners[1]:
        texts.append(f"the reward model ({owners[1]} there, {owners[0]} now)")
    return ", ".join(texts)


def shape(config: Config) -> jax.ShapeDtypeStruct:
    """The shape of a run's stored scores, as far as compiled programs depend on it."""
    return jax.ShapeDtypeStruct((1, config.prompt_values.num_samples), np.float32)


def with_scores(spec: ProgramSpec, workspace: Workspace, config: Config) -> ProgramSpec:
    """The specification of a run's program with the stored scores of its prompts, where its algorithm
    needs them.

    Args:
      spec: of the program, with their shape.
      workspace: of the run.
      config: of the RLHF stage.

    Raises MissingInput where prompts have no scores, and Refusal where they are of other samples. Both
    name what differs and the remedy.
    """
    if REFERENCE_SCORES not in spec.algorithm.needs:
        return spec
    found, why = of_run(workspace, config)
    if why:
        assert workspace.begin is not None
        raise MissingInput(
            f"{workspace.begin.directory} has stored scores of other samples than this run's: "
            f"{why}; accepted: the same, or scores of this run's own: run the stage {STAGE!r} first "
            f"(--config.job={STAGE})"
        )
    return replace(spec, reference_scores=found.table())
