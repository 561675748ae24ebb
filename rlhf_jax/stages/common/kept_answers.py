"""Rewards that are no functions of their inputs: asked about what the run's directory has no answer
to yet.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rlhf_jax import registry
from rlhf_jax.devices import distributed
from rlhf_jax.records import answers
from rlhf_jax.records.answers import Answers
from rlhf_jax.rewards.common.host_rewards import HostJudge
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.settings.stages import Stages

T = TypeVar("T")


@dataclass(frozen=True)
class KeptJudge:
    """A reward on text with the answers that it has given; called as a `HostJudge` is.

    Of several processes the first alone reads, asks and writes; it has to tell the others
    (`distributed.from_first`).
    """

    judge: HostJudge
    answers: Answers

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def wants_records(self) -> bool:
        return self.judge.wants_records

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        finished: Sequence[bool],
        records: Sequence[Mapping[str, Any]],
        when: str,
    ) -> np.ndarray:
        """Scores of completions, float32 `[B]`; zeros in every process but the first.

        See `HostJudge` for the arguments and what is raised.
        """
        if not distributed.is_first():
            return np.zeros(len(prompts), np.float32)

        def ask(indices: Sequence[int]) -> np.ndarray:
            of_rows = _picked(records, indices) if records else []
            texts = _picked(prompts, indices), _picked(completions, indices)
            return self.judge(*texts, _picked(finished, indices), of_rows, when)

        more = [finished] * self.judge.wants_finished + [records] * self.judge.wants_records
        keys = [
            answers.key(*question) for question in zip(prompts, completions, *more, strict=True)
        ]
        return self.answers.given(keys, ask).astype(np.float32)


def _picked(column: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [column[index] for index in indices]


def kept(
    workspace: Workspace, stages: Stages, judges: Mapping[str, HostJudge]
) -> dict[str, HostJudge | KeptJudge]:
    """The rewards on text of a run, with the answers of those that are asked once.

    Args:
      workspace: of whose directory the answers are read and where they are written.
      stages: says the settings of the rewards, and the run that this one replays, whose answers are
        read too.
      judges: by label.
    """
    folder, replayed = workspace.directory / answers.FOLDER, stages.rlhf.replay_schedule_of
    found: dict[str, HostJudge | KeptJudge] = dict(judges)
    for label, judge in judges.items():
        if judge.asked_once:
            config = stages.reward_settings[label]
            name = answers.file_name(
                label, registry.canonical("rewards", judge.name), dataclasses.asdict(config)
            )
            earlier = Path(replayed) / answers.FOLDER / name if replayed else None
            found[label] = KeptJudge(judge, Answers(folder / name, earlier))
    return found
