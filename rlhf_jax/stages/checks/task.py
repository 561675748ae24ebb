"""Checks a job's task, tokenizer and earlier stages against its settings, before anything is
compiled or written.

Nobody should learn after hours of one stage that the next one cannot begin. Prompts are all
encoded, once: each must fit lengths.max_prompt_tokens. Of references a share is wanted, so that an
even sample of them is enough. A reference that is longer than lengths.max_completion_tokens loses
its end, and with it the EOS: where fewer than `sft.min_whole_references` of them keep it, SFT would
teach the policy never to stop, and the job is refused; else one line says how many are cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import jax
import numpy as np

from rlhf_jax import randomness, scoring
from rlhf_jax.config import Problems
from rlhf_jax.devices.mesh import check_rows
from rlhf_jax.models.api import Model
from rlhf_jax.ops.once import once
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards.common.terms import parse
from rlhf_jax.stages import rlhf
from rlhf_jax.stages.api import Workspace
from rlhf_jax.stages.checks import earlier
from rlhf_jax.stages.checks.settings import EVALUATED, stages_of
from rlhf_jax.stages.common import evaluator
from rlhf_jax.stages.settings.stages import Stages
from rlhf_jax.tasks.api import Split
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import encoding

T = TypeVar("T")
NAMES: dict[Split, str] = {"train": "train", "heldout": "held-out"}
Pairs = Sequence[tuple[str, str, str]]
TEXTS_AT_ONCE = 4096
SAMPLED = 1024
"""Prompts whose references are encoded, or comparisons, evenly over a split."""


@dataclass
class Check:
    """The checks of one job.

    What cannot run becomes a problem, what a person should know a notice.
    """

    job: str
    workspace: Workspace
    stages: Stages
    problems: Problems = field(default_factory=Problems)
    notices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = self.workspace.task
        self.used = stages_of(self.job, self.stages, self.workspace.pretrained)
        self.given: dict[Split, Pairs] = {
            split: reading.comparisons(self.task, split) for split in NAMES
        }
        self._fitting: set[str] = set()  # prompts that fit
        self.sampled_pairs = "comparisons" in self.used and not any(map(len, self.given.values()))

    def run(self) -> list[str]:
        """Returns the notices of a job that can run, a sentence each.

        Raises Refusal with every problem.
        """
        settings = (self.earlier_stages, self.judges, self.overlong)
        for check in (*settings, self.comparisons, self.prompts, self.references):
            with self.problems.caught():
                check()
        self.problems.refuse()
        return self.notices

    def earlier_stages(self) -> None:
        """Raises MissingInput or Refusal as `checks.earlier.check`."""
        earlier.check(self.job, self.workspace, self.stages, self.used)

    def judges(self) -> None:
        """Raises Refusal where somebody has to judge and nobody can."""
        if not self.used & {"prompt_values", "rlhf"}:
            return
        if "gold" in [term.name for term in parse(self.stages.reward)] and not self.task.has_gold:
            raise Refusal(
                "reward names 'gold', but the task has no judge; accepted: learned, or a task with "
                "answers"
            )
        if self.stages.rlhf.ledger_gold and not self.workspace.has_gold:
            raise Refusal(
                "rlhf.ledger_gold is True, but the task has no judge; accepted: False, or a model "
                "in pretrained.gold"
            )
        rlhf.make_judges(self.workspace, self.stages)

    def overlong(self) -> None:
        """Raises Refusal as `scoring.check_overlong`."""
        if self.used & {"prompt_values", "rlhf"}:
            limit, config = self.workspace.lengths.max_completion_tokens, self.stages.rlhf.scoring
            scoring.check_overlong(config.overlong, limit, "rlhf.scoring.overlong")

    def comparisons(self) -> None:
        """Raises Refusal where a reward model would have nothing to learn from."""
        if "comparisons" not in self.used:
            return
        if not self.sampled_pairs:
            self._given_comparisons()
            return
        if not self.workspace.has_gold:
            raise Refusal(
                "the task gives neither comparisons nor a gold judge to make them, which "
                f"{'DPO' if 'dpo' in self.used else 'a learned reward'} needs: give its "
                "comparisons, or set pretrained.gold"
                f"{'' if 'dpo' in self.used else ' or pretrained.reward_model'}"
            )
        config = self.stages.comparisons
        check_rows("comparisons.prompts_per_batch", config.prompts_per_batch, self.workspace.mesh)
        for key, pairs in self._pairs_per_update().items():
            if config.num_train < pairs:
                raise Refusal(
                    f"comparisons.num_train is {config.num_train}; accepted: at least {key} = "
                    f"{pairs}"
                )

    def _pairs_per_update(self) -> dict[str, int]:
        """Pairs of an update, by key, of the stages that learn from comparisons."""
        found = {"reward_model": self.stages.reward_model, "dpo": self.stages.dpo}
        return {
            f"{stage}.pairs_per_update": settings.pairs_per_update
            for stage, settings in found.items()
            if stage in self.used and settings is not None
        }

    def _given_comparisons(self) -> None:
        train, heldout = self.given["train"], self.given["heldout"]
        for key, pairs in self._pairs_per_update().items():
            if len(train) < pairs:
                raise Refusal(
                    f"the task gives {len(train)} train comparisons; accepted: at least {key} = "
                    f"{pairs}"
                )
        if self._pairs_per_update() and not len(heldout):
            raise Refusal(
                f"all {len(train)} comparisons of the task are train ones; accepted: some of "
                "held-out prompts, on which the "
                f"{'policy' if 'dpo' in self.used else 'reward model'} is measured"
            )
        pairs_read = [*evenly(train), *evenly(heldout)]
        lengths = self._completion_lengths(
            "comparisons", [text for _, *both in pairs_read for text in both]
        )
        limit = self.workspace.lengths.max_completion_tokens
        cut = sum(max(both) > limit for both in zip(lengths[::2], lengths[1::2], strict=True))
        if cut:
            self.notices.append(
                f"{cut} of {len(pairs_read)} comparisons have a completion longer than "
                "lengths.max_completion_tokens = "
                f"{limit}, which loses its end"
            )

    def prompts(self) -> None:
        """Notes a split that is asked for prompts and has none, and prompts that do not fit."""
        pairs = {"comparisons"} if self.sampled_pairs else set()
        users: dict[Split, set[str]] = {
            "train": {"sft", "reward_model", "prompt_values", "rlhf"} | pairs,
            "heldout": EVALUATED | pairs,
        }
        for split, stages in users.items():
            count = reading.num_prompts(self.task, split)
            asking = ", ".join(sorted(stages & self.used))
            if asking and not count:
                self.problems.note(f"the task has no {NAMES[split]} prompts, which {asking} needs")
            elif asking and not hasattr(
                self.task, "fitted"
            ):  # a task that has it left out what does not fit
                self._fit(
                    f"{NAMES[split]} prompts",
                    count,
                    reading.prompts(self.task, split),
                )
        if self.used & EVALUATED and reading.num_prompts(self.task, "heldout"):
            with self.problems.caught():
                notice = evaluator.fitted(
                    self.stages.evaluate, reading.num_prompts(self.task, "heldout")
                )[1]
                self.notices += filter(None, [notice])
        if self._pairs_per_update() and not hasattr(self.task, "fitted"):
            for split, given in self.given.items():
                self._fit(
                    f"prompts of {NAMES[split]} comparisons",
                    len(given),
                    (prompt for prompt, _, _ in given),
                )

    def _fit(self, what: str, count: int, texts: Iterable[str]) -> None:
        """Notes texts that have no token, or more than a prompt may have."""
        limit, empty, over, longest = self.workspace.lengths.max_prompt_tokens, 0, 0, (0, "")
        # Many comparisons are of one prompt, which is also a prompt of the task.
        rest = (text for text in texts if text not in self._fitting)
        while chunk := list(islice(rest, TEXTS_AT_ONCE)):
            with self._reading(what):
                lengths = encoding.count_tokens(self.workspace.tokenizer, chunk)
            empty += lengths.count(0)
            over += sum(length > limit for length in lengths)
            self._fitting.update(
                text for text, length in zip(chunk, lengths, strict=True) if 0 < length <= limit
            )
            longest = max(longest, *zip(lengths, chunk, strict=True))
        if empty:
            self.problems.note(
                f"{empty} of {count} {what} have no tokens; accepted: one token or more"
            )
        if over:
            self.problems.note(
                f"{over} of {count} {what} are longer than lengths.max_prompt_tokens = {limit}: "
                f"{longest[1][:60]!r} has "
                f"{longest[0]} tokens; accepted: at least {longest[0]}, or shorter prompts"
            )

    def references(self) -> None:
        """Notes references that are missing, or too long for SFT to learn where they end."""
        if "sft" in self.used and reading.num_prompts(self.task, "train"):
            texts = self._references("train", "SFT learns from")
            limit = self.workspace.lengths.max_completion_tokens
            cut = sum(length > limit for length in self._completion_lengths("references", texts))
            if cut:
                self._cut(cut, len(texts), limit)
        if (
            self.used & EVALUATED
            and self.stages.evaluate.compare_with == "references"
            and self.workspace.has_gold
            and reading.num_prompts(self.task, "heldout")
        ):
            self._references("heldout", "completions are compared with")

    def _references(self, split: Split, purpose: str) -> list[str]:
        """References of an even sample of a split's prompts. Raises Refusal where one has none."""
        texts: list[str] = []
        for index in evenly(range(reading.num_prompts(self.task, split))):
            found = reading.references(self.task, split, index)
            if not found:
                raise Refusal(
                    f"{NAMES[split]} prompt {index} of the task has no reference, which {purpose}"
                )
            texts += found
        return texts

    def _completion_lengths(self, what: str, texts: Sequence[str]) -> list[int]:
        with self._reading(what):
            return encoding.completion_lengths(self.workspace.tokenizer, texts)

    def _cut(self, cut: int, count: int, limit: int) -> None:
        said = (
            f"{cut} of {count} references are longer than lengths.max_completion_tokens = {limit} "
            "and lose their end, which is "
            "the EOS"
        )
        least = self.stages.sft.min_whole_references
        if count - cut < least * count:
            self.problems.note(
                f"{said}: the policy would not learn to stop; accepted: longer completions, or a "
                "lower share in "
                f"sft.min_whole_references = {least}"
            )
        else:
            self.notices.append(said)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Says of which texts a refusal of the tokenizer is, and which kind reads a task of single
        characters.
        """
        try:
            yield
        except Refusal as error:
            symbols = self.task.vocabulary or ("",)
            remedy = (
                "; --config.tokenizer.kind=characters reads this task"
                if max(map(len, symbols)) == 1
                else ""
            )
            raise Refusal(f"{what}: {error}{remedy}") from error


def summary(workspace: Workspace) -> str:
    """Rows, prompts and comparisons that were read, and the model and devices that use them, in one
    line.
    """
    task, model = workspace.task, workspace.model
    read = getattr(task, "description", type(task).__name__.lower())
    counts = [
        f"{task.num_prompts('train'):,} train and {task.num_prompts('heldout'):,} held-out prompts"
    ]
    if any(given := [len(reading.comparisons(task, split)) for split in NAMES]):
        counts.append(f"{given[0]:,} and {given[1]:,} comparisons")
    params, devices = _num_params(model), workspace.mesh.devices
    kind = devices.flat[0].device_kind
    return (
        f"{'; '.join(str(read).splitlines())}: {', '.join(counts)}; model of {params:,} parameters "
        f"on {devices.size} {kind} "
        f"device{'s' if devices.size > 1 else ''}"
    )


@once  # a model is traced for its shapes
def _num_params(model: Model) -> int:
    shapes = jax.tree.leaves(jax.eval_shape(model.init, randomness.key(0)))
    return sum(int(np.prod(leaf.shape)) for leaf in shapes)


def evenly(sequence: Sequence[T]) -> list[T]:
    """At most `SAMPLED` entries of a sequence, evenly over it; all where there are no more."""
    step = max(1, -(-len(sequence) // SAMPLED))
    return [sequence[index] for index in range(0, len(sequence), step)]
