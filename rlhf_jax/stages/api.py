"""The workspace that every stage of a run shares: directory, seed, task, tokenizer, model, mesh,
lengths, prompts.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import randomness, sampling
from rlhf_jax.config import Bounds
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.devices.placement import put
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import adapters, rounding
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.records.checkpoints import Checkpoints
from rlhf_jax.records.metrics import MetricsWriter
from rlhf_jax.rewards.common import host_rewards
from rlhf_jax.run_directory import identity, stage_records
from rlhf_jax.stages.common import pretrained_models
from rlhf_jax.stages.common.beginning import Begin
from rlhf_jax.tasks.api import Split, Task, stream_indices
from rlhf_jax.tasks.common import reading
from rlhf_jax.text import encoding
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Array, Params, Prompts, Samples

LONGEST = 2**20  # positions of a row

T = TypeVar("T")


@dataclass(frozen=True)
class Lengths:
    """Positions of the compiled programs: one shape for every prompt and completion of a run."""

    # prompts are padded on the left to this length
    max_prompt_tokens: Annotated[int, Bounds(least=1, most=LONGEST)] = 24
    max_completion_tokens: Annotated[int, Bounds(least=2, most=LONGEST)] = (
        24  # the EOS is one of them
    )
    # widths in which prompts are scored and evaluated: multiples of max_prompt_tokens / prompt_buckets;
    # each is compiled, and rows of similar lengths are computed together
    prompt_buckets: Annotated[int, Bounds(least=1, most=16)] = 1


@dataclass(frozen=True)
class Workspace:
    """A run's directory and what is the same for all of its stages."""

    directory: Path
    seed: int
    task: Task
    tokenizer: Tokenizer
    model: Model
    mesh: Mesh
    lengths: Lengths
    pretrained: pretrained_models.Config = field(default_factory=pretrained_models.Config)
    lora: adapters.Config = field(default_factory=adapters.Config)
    # Bases of adapters by their run's directory, which stages and `source` share: see `lora/base.py`.
    bases: dict[str, adapters.Base] = field(default_factory=dict, compare=False)
    begin: Begin | None = None  # the run that this one begins from
    facts: stage_records.Facts | None = (
        None  # what stages are recorded as made with; None: they are not recorded
    )

    @property
    def source(self) -> "Workspace":
        """The workspace of the run that this one begins from, on this one's mesh, to read from."""
        assert self.begin is not None
        return dataclasses.replace(
            self,
            directory=self.begin.directory,
            pretrained=self.begin.pretrained,
            lora=self.begin.lora,
            begin=self.begin.inner,
            facts=None,
        )

    def record(self, stage: str) -> None:
        """Writes down what a stage is made with, before it makes anything."""
        stage_records.write(self.directory, stage, self.facts)

    @cached_property
    def samplers(self) -> dict[sampling.Config, Callable[..., Samples]]:
        """Compiled samplers of this run's model, which stages add and share; see
        `comparisons.sampler`.
        """
        return {}

    @cached_property
    def value_model(self) -> ValueModel:
        """The model with a value head: reward models and critics."""
        return ValueModel(self.model)

    @cached_property
    def reward_network(self) -> ValueModel:
        """The reward model's network: of the published one where there is one, else the policy's
        with a value head.
        """
        if not self.pretrained.reward_model:
            return self.value_model
        computed = {
            name: getattr(self.model, name)
            for name in (
                *("dtype", "remat", "remat_policy", "scan_layers"),
                *("gradient_dtype", "network_gradient_dtype"),
            )
            if hasattr(self.model, name)
        }
        return pretrained_models.classifier(self.pretrained.reward_model, **computed)

    @cached_property
    def metrics(self) -> MetricsWriter:
        """The writer of the run's figures, which opens its trackers at the first one."""
        return MetricsWriter(self.directory, partial(identity.openers, self.directory, self.facts))

    def key(self, purpose: str) -> Array:
        """The random key of a purpose: a function of the seed and the purpose's name."""
        return jax.random.fold_in(
            randomness.key(self.seed), zlib.crc32(purpose.encode()) & 0x7FFFFFFF
        )

    def on_mesh(self, params: Params) -> Params:
        """A policy's params on the run's mesh, wherever a plan has them trained."""
        return put(params, sharding.params_shardings(self.model, params, self.mesh))

    def held(self, params: Params) -> Params:
        """A policy's params as a role that no update changes holds them: see `rounding.held`."""
        return rounding.held(self.model, params)

    def checkpoints(self, stage: str, keep: int = 2) -> Checkpoints:
        return Checkpoints(self.directory / "checkpoints" / stage, keep)

    def stream(
        self, split: Split, purpose: str, part: int = 0, num_parts: int = 1
    ) -> "PromptStream":
        """The endless prompt stream of a purpose; different purposes have different orders.

        With `num_parts` > 1 the split's prompts are dealt out in parts that have no prompt in
        common, whatever the seed.
        """
        return PromptStream(
            self, split, (self.seed << 32) + zlib.crc32(purpose.encode()), part, num_parts
        )

    def completions(self, samples: Samples) -> list[str]:
        """Texts of sampled completions, before the EOS."""
        rows = (samples.tokens_BC, samples.mask_BC, samples.finished_B, samples.prompt_tokens_BQ)
        tokens, mask, finished, prompt_tokens_BQ = distributed.fetch(rows)
        last_B = prompt_tokens_BQ[:, -1]  # prompts are left-padded
        return encoding.decode_completions(tokens, mask, finished, self.tokenizer, last_B)

    @property
    def has_gold(self) -> bool:
        """True where there is a judge: a gold reward model, or the task."""
        return bool(self.pretrained.gold) or self.task.has_gold

    @cached_property
    def _gold_model(self) -> pretrained_models.Judge:
        template = getattr(self.task, "template", None)
        date = "" if template is None else template.date
        return pretrained_models.Judge(self.pretrained, self.tokenizer, self.mesh, date)

    def gold(
        self, prompts: Sequence[str], completions: Sequence[str], finished_B: Sequence[bool]
    ) -> np.ndarray:
        """Gold scores `[B]`, float64, of texts before the EOS, by the gold reward model where there
        is one, else by the task.

        Args:
          prompts: B texts.
          completions: B texts, without the EOS.
          finished_B: True where an EOS was sampled.

        Raises Refusal where nobody judges; RewardError for a judge of the task that raises, or
        gives no finite number.
        """
        if self.pretrained.gold:
            scores = self._gold_model(prompts, completions, finished_B)
            who, texts = (
                f"the gold reward model {self.pretrained.gold}",
                list(zip(prompts, completions, strict=True)),
            )
            return host_rewards.numbers(who, scores, len(texts), texts.__getitem__)
        return host_rewards.judge(self.task, prompts, completions, finished_B)


@dataclass(frozen=True)
class PromptStream:
    """Prompts by their place in an endless, reshuffled, seekable stream."""

    workspace: Workspace
    split: Split
    seed: int
    part: int = 0
    num_parts: int = 1

    def indices(self, start: int, count: int) -> np.ndarray:
        num_prompts = reading.num_prompts(self.workspace.task, self.split) // self.num_parts
        return stream_indices(num_prompts, self.seed, start, count) * self.num_parts + self.part

    def texts(self, start: int, count: int) -> list[str]:
        """Prompts, as the task gives them."""
        return [
            reading.prompt(self.workspace.task, self.split, index)
            for index in self.indices(start, count)
        ]

    def texts_of(self, samples: Samples) -> list[str]:
        """The prompt of every sample of this stream, by its ordinal: what its tokens decode to need
        not be the text.
        """
        return _by_ordinal(samples, self.texts)

    def references(self, start: int, count: int) -> list[tuple[str, ...]]:
        return [
            reading.references(self.workspace.task, self.split, index)
            for index in self.indices(start, count)
        ]

    def one_reference(self, start: int, numbers: Sequence[int]) -> list[str | None]:
        """One reference of each of consecutive prompts; None where a prompt has none.

        Args:
          start: the first position in the stream.
          numbers: of the prompts' references; past the last one they begin again with the first.
        """
        indices = self.indices(start, len(numbers))
        return [
            reading.reference(self.workspace.task, self.split, index, number)
            for index, number in zip(indices, numbers, strict=True)
        ]

    def records_of(self, samples: Samples) -> list[Mapping[str, Any]]:
        """The fields of the row of every sample's prompt: see `tasks.api.Task`."""

        def records(start: int, count: int) -> list[Mapping[str, Any]]:
            return [
                reading.record(self.workspace.task, self.split, index)
                for index in self.indices(start, count)
            ]

        return _by_ordinal(samples, records)

    def prompts(self, start: int, count: int) -> Prompts:
        """Host arrays; the ordinals are the places in the stream.

        Args:
          start: the first position in the stream.
          count: P.
        """
        workspace = self.workspace
        tokens, mask = encoding.encode_prompts(
            self.texts(start, count), workspace.tokenizer, workspace.lengths.max_prompt_tokens
        )
        ordinals = np.arange(start, start + count, dtype=np.int32)
        arrays: tuple[Any, Any, Any] = tokens, mask, ordinals
        return Prompts(*arrays)


def _by_ordinal(samples: Samples, rows: Callable[[int, int], list[T]]) -> list[T]:
    """The row of every sample's prompt; `rows(start, count)` gives those of consecutive prompts."""
    ordinals = np.asarray(distributed.fetch(samples.ordinal_B))
    first = int(ordinals.min())
    of_prompt = rows(first, int(ordinals.max()) + 1 - first)
    return [of_prompt[ordinal - first] for ordinal in ordinals.tolist()]
