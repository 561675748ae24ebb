"""Completions of given prompts by a saved version of a run's policy, and by its SFT policy."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax import sampling
from rlhf_jax.devices import distributed
from rlhf_jax.records.notes import say
from rlhf_jax.refusal import MissingInput, Refusal
from rlhf_jax.stages import rlhf, sft
from rlhf_jax.stages.api import LONGEST, Workspace
from rlhf_jax.stages.comparisons import sampler
from rlhf_jax.text import chat, encoding
from rlhf_jax.types import Params, Prompts

PURPOSE = "generate"
SFT_POLICY = "SFT policy"
MOST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Request:
    """Prompts, and how they are to be completed. None: as the run's config has it."""

    prompts: tuple[str, ...]
    is_chat: bool = False
    temperature: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raises Refusal for a value that no completion can be drawn with."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise Refusal(
                f"--temperature is {self.temperature:g}; accepted: 0, which is greedy, or above"
            )
        if self.max_tokens is not None and not 1 <= self.max_tokens <= LONGEST:
            raise Refusal(f"--max_tokens is {self.max_tokens}; accepted: 1 to {LONGEST}")
        if self.seed is not None and not 0 <= self.seed <= MOST_SEED:
            raise Refusal(f"--seed is {self.seed}; accepted: 0 to {MOST_SEED}")


@dataclass(frozen=True)
class Completion:
    """A completion before its EOS; `finished` is False where none was sampled."""

    text: str
    finished: bool


def side_by_side(
    workspace: Workspace, version: int | None, request: Request
) -> dict[str, list[Completion]]:
    """The completions of every prompt by policy, the SFT policy first.

    Both policies draw with the same random numbers. The SFT policy is left out, and told, where
    the run has it no more.

    Args:
      workspace: of the run.
      version: of the policy, 0 being the one that RLHF began with; None: the newest.
      request: the prompts.

    Raises MissingInput that names the versions which are kept, Refusal for a prompt that cannot be
    encoded.
    """
    request.check()
    version = checked_version(workspace, version)
    if request.seed is not None:
        workspace = replace(workspace, seed=request.seed)
    prompts = encoded(workspace, request)
    length = request.max_tokens or workspace.lengths.max_completion_tokens
    draw = sampler(workspace, sampling.Config(length, 1, request.temperature), PURPOSE)

    def completions(params: Params) -> list[Completion]:
        samples = distributed.fetch(draw(params, prompts))
        pairs = zip(workspace.completions(samples), samples.finished_B.tolist(), strict=True)
        return [Completion(*pair) for pair in pairs][: len(request.prompts)]

    found = {}
    try:
        sft_params = workspace.held(sft.load(workspace))
        found[SFT_POLICY] = completions(sft_params)
    except MissingInput as error:
        if version == 0:
            raise
        say(f"the {SFT_POLICY} does not answer: {error}")
        sft_params = None
    if version:
        params = workspace.held(rlhf.load(workspace, version)[0])
    else:
        assert sft_params is not None  # version 0 needs it, and has raised
        params = workspace.held(rlhf.first_policy(workspace, sft_params))
    return found | {f"version {version}": completions(params)}


def checked_version(workspace: Workspace, version: int | None) -> int:
    """The version that is asked for, by default the newest.

    Raises MissingInput that names the versions which are kept.
    """
    try:
        kept = rlhf.versions(workspace)
    except MissingInput:
        if version == 0:
            return 0
        raise
    if version is None:
        return kept[-1]
    if version and version not in kept:
        raise MissingInput(
            f"{workspace.directory} has no version {version}; it has: 0, "
            f"{', '.join(map(str, kept))}"
        )
    return version


def encoded(workspace: Workspace, request: Request) -> Prompts:
    """The prompts as host arrays; the first is repeated until the mesh divides their number.

    Raises Refusal for a prompt that is empty, too long or of symbols that the tokenizer lacks, and
    where there is no chat template to put it in.
    """
    texts = (
        [rendered(workspace, text) for text in request.prompts]
        if request.is_chat
        else list(request.prompts)
    )
    shards = workspace.mesh.shape["data"] * workspace.mesh.shape["fsdp"]
    count = -(-len(texts) // shards) * shards
    tokens, mask = encoding.encode_prompts(
        [*texts, *texts[:1] * (count - len(texts))],
        workspace.tokenizer,
        workspace.lengths.max_prompt_tokens,
    )
    arrays: tuple[Any, Any, Any] = tokens, mask, np.arange(count, dtype=np.int32)
    return Prompts(*arrays)


def rendered(workspace: Workspace, text: str) -> chat.Rendered:
    """A user's message in the chat template of the task, else of the tokenizer's folder.

    Raises Refusal where neither has one.
    """
    template = getattr(workspace.task, "template", None)
    if template is None:
        file = getattr(workspace.tokenizer, "file", None)
        if file is None:
            raise Refusal(
                "--chat needs a chat template, and neither the task nor the tokenizer of "
                f"{workspace.directory} has one; accepted: --prompt without --chat"
            )
        folder = Path(file)
        template = chat.find(str(folder if folder.is_dir() else folder.parent))
    messages = [{"role": "user", "content": text}]
    return chat.render(template, messages, add_generation_prompt=True)
