"""Published checkpoint folders that stand for what a stage would train: first params, SFT policy,
reward model, gold judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from rlhf_jax import randomness, registry
from rlhf_jax.config import Count
from rlhf_jax.devices import distributed, sharding
from rlhf_jax.models.api import Model
from rlhf_jax.models.common import family as families
from rlhf_jax.models.common.rounding import held
from rlhf_jax.models.common.value_head import ValueModel
from rlhf_jax.ops.once import bound
from rlhf_jax.pretrained import folders
from rlhf_jax.pretrained.folders import Folder
from rlhf_jax.refusal import Refusal
from rlhf_jax.rewards import learned
from rlhf_jax.stages.checks import vocabularies
from rlhf_jax.tasks.api import Task
from rlhf_jax.text import chat, encoding
from rlhf_jax.text.tokenizers import Tokenizer
from rlhf_jax.types import Array, Params

COMPUTED = (
    "dtype",
    "remat",
    "remat_policy",
    "attention",
    "scan_layers",
    "gradient_dtype",
    "network_gradient_dtype",
)  # how a model is computed: the run says it, no folder does


@dataclass(frozen=True)
class Config:
    """Folders of safetensors files; empty ones stand for nothing."""

    base: str = ""  # SFT begins with its params
    sft: str = ""  # the SFT policy: the stage is not run
    # a PEFT folder: the adapter on base or sft that the policy begins with; needs lora.rank
    adapter: str = ""
    reward_model: str = (
        ""  # a sequence classifier of the run's vocabulary: the stage measures its origin and scale
    )
    gold: str = ""  # a sequence classifier that judges: it relabels comparisons, and says who wins
    # Conversations are rendered again in it for gold: a name, file or folder; empty: see Judge.
    gold_chat_template: str = ""
    gold_rows_per_batch: Count = 64  # completions that the gold model scores at once
    # of the gold model's products, in which its params are held too
    gold_dtype: Literal["float32", "bfloat16"] = "float32"
    # The shapes of the models in these folders, for plans that are made where the folders are not;
    # a run reads the folders.
    policy_shape: str = ""  # of base or sft: FAMILY/PRESET, such as gpt_neox/pythia-1b
    reward_model_shape: str = ""  # FAMILY/PRESET; "": as large as the policy
    gold_shape: str = ""  # FAMILY/PRESET

    def __post_init__(self) -> None:
        if self.base and self.sft:
            raise Refusal(
                f"pretrained.base={self.base!r} is where SFT begins, and "
                f"pretrained.sft={self.sft!r} "
                "stands for it; accepted: one of them"
            )
        if self.adapter and not self.policy:
            raise Refusal(
                f"pretrained.adapter is {self.adapter!r} without a model that it adapts; accepted "
                "with it: pretrained.base or pretrained.sft"
            )

    @property
    def policy(self) -> str:
        """The folder that the policy comes from, or ""."""
        return self.sft or self.base


def model_of_shape(pretrained: Config, key: str, **computed: object) -> Model:
    """The decoder of a published shape.

    Args:
      pretrained: names it.
      key: of `pretrained` that does, such as "policy_shape".
      **computed: values of `COMPUTED`.

    Raises Refusal for a shape that there is not, naming those there are.
    """
    shape = getattr(pretrained, key)
    family, slash, preset = shape.rpartition("/")
    if not slash:
        raise Refusal(
            f"pretrained.{key} is {shape!r}; accepted: FAMILY/PRESET, such as gpt_neox/pythia-1b"
        )
    found = families.find(family)
    if preset not in found.presets:
        raise Refusal(
            f"pretrained.{key} is {shape!r}; accepted presets of {family}: "
            f"{', '.join(found.presets)}"
        )
    return found.make(replace(found.presets[preset], **computed))


def model_of(folder: Folder, **computed: object) -> Model:
    """The decoder of a folder's config.json, computed as keys of `COMPUTED` say."""
    return registry.find("models", folder.family).make(replace(folder.model_config, **computed))


def model_values(values: dict[str, Any], pretrained: Config) -> dict[str, Any]:
    """The model's node, completed or compared with config.json of the folder that the policy comes
    from.

    `model.family=pretrained` takes the folder's architecture and shape whatever the other keys say,
    but for `COMPUTED`. Raises Refusal where a family that is named, or a number, is not the
    folder's.
    """
    if not pretrained.policy:
        if values["family"] == "pretrained":
            raise Refusal(
                "model.family is 'pretrained', but neither pretrained.base nor pretrained.sft "
                "names a folder"
            )
        return values
    folder = Folder(Path(pretrained.policy))
    there = asdict(folder.model_config) | {"family": folder.family}
    there |= {key: values[key] for key in COMPUTED if key in values}
    if values["family"] == "pretrained":
        return there
    given = there | values | {"init_scale": there["init_scale"]}
    given["vocab_size"] = values["vocab_size"] or there["vocab_size"]
    explicit = _explicit(there)
    for key, value in sorted(_explicit(given).items(), key=lambda item: item[0] != "family"):
        if explicit.get(key) != value:
            raise Refusal(
                f"model.{key} is {value!r}, but the folder {pretrained.policy} has "
                f"{explicit.get(key)!r}; "
                "--config.model.family=pretrained takes the folder's model"
            )
    return given


def _explicit(values: dict[str, Any]) -> dict[str, Any]:
    """With the head width that 0 stands for."""
    if values.get("head_width", 1):
        return values
    return values | {"head_width": values["width"] // values["num_heads"]}


def check(pretrained: Config, tokenizer: Tokenizer, task: Task | None = None) -> None:
    """Raises Refusal for a folder that cannot play its role, before anything is compiled.

    Headers of weight files are read, and no tensor.

    Args:
      task: where it is not known, its prompts may hold any special token, and are no conversations.
    """
    for key in ("policy_shape", "reward_model_shape", "gold_shape"):
        if getattr(pretrained, key):
            model_of_shape(pretrained, key)
    if pretrained.policy:
        folders.check_decoder(Folder(Path(pretrained.policy)))
        vocabularies.check_policy(Path(pretrained.policy), tokenizer)
    for path in filter(None, (pretrained.reward_model, pretrained.gold)):
        folders.check_classifier(Folder(Path(path)))
    if pretrained.reward_model:
        known = Folder(Path(pretrained.reward_model)).model_config.vocab_size
        vocabularies.check_reward_model(Path(pretrained.reward_model), known, tokenizer)
    if pretrained.gold:
        folder = Path(pretrained.gold)
        known, template = Folder(folder).model_config.vocab_size, getattr(task, "template", None)
        judge = vocabularies.judge_tokenizer(folder, known, tokenizer)
        date = "" if template is None else template.date
        again = vocabularies.gold_template(
            pretrained.gold_chat_template, folder, judge, tokenizer, date
        )
        if template is None or again is None:
            vocabularies.check_marks(folder, vocabularies.foreign_marks(judge, tokenizer), task)


def load_policy(path: str, model: Model, mesh: Mesh) -> Params:
    """The params of a folder, laid out as the model's params are on the mesh."""
    shapes = jax.eval_shape(model.init, randomness.key(0))
    return folders.load(Folder(Path(path)), model, sharding.params_shardings(model, shapes, mesh))


def classifier(path: str, **computed: object) -> ValueModel:
    """The network of a published reward model, computed as keys of `COMPUTED` say."""
    return ValueModel(model_of(Folder(Path(path)), **computed))


def gold_network(pretrained: Config) -> ValueModel | None:
    """The network of the gold model; None where there is none. Where its folder is not here it has
    the shape that `gold_shape` names.

    Args:
      pretrained: names the folder.

    Raises Refusal for a folder that is not here, without a shape.
    """
    if not pretrained.gold:
        return None
    if Path(pretrained.gold).exists():
        return classifier(pretrained.gold, dtype=pretrained.gold_dtype)
    if not pretrained.gold_shape:
        raise Refusal(
            f"the gold model's folder {pretrained.gold!r} is not here; "
            "--config.pretrained.gold_shape=FAMILY/PRESET plans with a published one"
        )
    return ValueModel(model_of_shape(pretrained, "gold_shape", dtype=pretrained.gold_dtype))


def load_classifier(path: str, model: ValueModel, mesh: Mesh) -> Params:
    """The params of a published reward model on the mesh."""
    folder = Folder(Path(path))
    shapes = folders.value_shapes(model, folder)
    return folders.load_value(folder, model, sharding.params_shardings(model, shapes, mesh))


class Judge:
    """A published reward model that scores text: the whole completion, and its EOS where it ended.

    It has a tokenizer of its own where its folder holds one, else the policy's. A completion
    without EOS is scored at its last token, as the evaluation of async RLHF does (arXiv
    2410.18252).

    Conversations are rendered again, reply included, in `pretrained.gold_chat_template`, or where
    that is empty and gold has another vocabulary than the policy, in its folder's own template.
    Otherwise gold reads the policy's text.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, mesh: Mesh, date: str = ""):
        """`date` is told to a template that asks for it."""
        self.config, self.mesh = config, mesh
        folder = Path(config.gold)
        known = Folder(folder).model_config.vocab_size
        self.tokenizer = vocabularies.judge_tokenizer(folder, known, tokenizer)
        self._template = vocabularies.gold_template(
            config.gold_chat_template, folder, self.tokenizer, tokenizer, date
        )
        self._foreign = vocabularies.pattern(vocabularies.foreign_marks(self.tokenizer, tokenizer))

    @cached_property
    def _compiled(self) -> Callable[[ArrayLike, ArrayLike], Array]:
        model = classifier(self.config.gold, dtype=self.config.gold_dtype)
        params = held(model, load_classifier(self.config.gold, model, self.mesh))
        score = sharding.keeping_rows(bound(learned.score_tokens, model), self.mesh)
        return partial(distributed.compiled(score), params)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], finished_B: Sequence[bool]
    ) -> np.ndarray:
        """Raw scores `[B]`, float64, in the reward model's own unit."""
        rows = zip(prompts, completions, finished_B, strict=True)
        ids = [
            self.ids(prompt, completion, bool(finished)) for prompt, completion, finished in rows
        ]
        size = self.config.gold_rows_per_batch
        parts = [self._score(ids[start : start + size], size) for start in range(0, len(ids), size)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def ids(self, prompt: str, completion: str, finished: bool) -> list[int]:
        """The tokens that are scored.

        Raises Refusal for a prompt with marks that the tokenizer would spell out.
        """
        tokenizer = self.tokenizer
        messages = list(prompt.messages) if isinstance(prompt, chat.Rendered) else []
        if self._template is not None and messages:
            if finished:
                messages.append({"role": "assistant", "content": completion})
            prompt = chat.render(self._template, messages, add_generation_prompt=not finished)
            if finished:
                return encoding.prompt_ids(prompt, tokenizer)
        elif self._foreign is not None and (mark := self._foreign.search(prompt)):
            raise Refusal(
                f"pretrained.gold {self.config.gold} does not know the special token {mark[0]!r} "
                f"of {prompt[:80]!r}"
            )
        ids = encoding.prompt_ids(prompt, tokenizer)
        end = [tokenizer.eos_id] if finished else []
        return [*ids, *tokenizer.encode_after(ids[-1] if ids else None, completion), *end]

    def _score(self, ids: list[list[int]], size: int) -> np.ndarray:
        filled = ids + ids[:1] * (size - len(ids))
        length = 16
        while length < max(map(len, ids)):  # powers of two, so that few shapes are compiled
            length *= 2
        tokens_BL, mask_BL = encoding.pad_completions(filled, self.tokenizer.pad_id, length)
        rows = distributed.feed(
            (tokens_BL, mask_BL), sharding.row_shardings((tokens_BL, mask_BL), self.mesh)
        )
        return np.asarray(distributed.fetch(self._compiled(*rows)), np.float64)[: len(ids)]
