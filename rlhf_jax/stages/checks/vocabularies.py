"""Published folders against the run's tokenizer: ids and special tokens must mean to one what they
mean to the other.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.tasks.api import Split, Task
from rlhf_jax.text import chat, tokenizers, vocabularies
from rlhf_jax.text.folder_texts import FolderTexts
from rlhf_jax.text.tokenizers import Tokenizer

SPLITS: tuple[Split, ...] = ("train", "heldout")
PROMPTS_READ = 1024  # of each split: a mark that a task writes is in all of its prompts


def check_policy(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises Refusal where ordinary tokens of the folder that the policy comes from are others of
    the run's tokenizer.

    Tokens that the folder lacks may be new ones, and special tokens may have got another name:
    training will teach them.
    """
    file = vocabularies.tokenizer_file(folder)
    theirs = (
        None if file == getattr(tokenizer, "file", None) else vocabularies.folder_vocabulary(folder)
    )
    if theirs is None:
        return
    differs = vocabularies.difference(tokenizer.vocabulary(), theirs, lacking=False, special=True)
    if differs:
        raise Refusal(
            f"the policy's folder {folder} has another vocabulary ({theirs.file.name}) than the "
            f"run's tokenizer: {differs};"
            " --config.tokenizer.kind=hf takes the folder's tokenizer"
        )


def check_reward_model(folder: Path, known: int, tokenizer: Tokenizer) -> None:
    """Raises Refusal where a reward model would read the run's ids as other text.

    Args:
      known: tokens of the model. Nothing but their number can be compared where the folder holds no
        tokenizer.
    """
    remedy = "it scores tokens, so it must be of the policy's tokenizer; pretrained.gold may have a tokenizer of its own"
    theirs = vocabularies.folder_vocabulary(folder)
    if known < tokenizer.vocab_size:
        raise Refusal(
            f"the reward model {folder} knows {known} tokens, but the tokenizer has "
            f"{tokenizer.vocab_size}: {remedy}"
        )
    differs = (
        vocabularies.difference(tokenizer.vocabulary(), theirs, lacking=True, special=False)
        if theirs
        else ""
    )
    if differs and theirs:
        raise Refusal(
            f"the reward model {folder} has another vocabulary ({theirs.file.name}): {differs}; "
            f"{remedy}"
        )


def judge_tokenizer(folder: Path, known: int, policy: Tokenizer) -> Tokenizer:
    """The tokenizer of a gold model's folder, else the policy's.

    Args:
      known: tokens of the model.

    Raises Refusal where the model has no rows for them.
    """
    own = vocabularies.tokenizer_of(folder)
    if own is None and known < policy.vocab_size:
        raise Refusal(
            f"the gold model {folder} knows {known} tokens, but the policy's tokenizer, as the "
            "folder holds none, has"
            f" {policy.vocab_size}"
        )
    try:
        return policy if own is None else tokenizers.within(own, known)
    except Refusal as error:
        raise Refusal(f"pretrained.gold {folder}: {error}") from None


def gold_template(
    name: str, folder: Path, judge: Tokenizer, policy: Tokenizer, date: str
) -> chat.Template | None:
    """The template in which conversations are rendered again for gold; None: it gets the policy's
    text.

    Args:
      name: `pretrained.gold_chat_template`. Where it is empty, a gold model of another vocabulary
        than the policy's gets its folder's template, where there is one: the marks of the policy's
        mean nothing to it.
      date: `task.date`.

    Raises Refusal for a template that is not there or cannot render a conversation of a user and an
    assistant.
    """
    if not name and (same_vocabulary(judge, policy) or not FolderTexts(folder).chat_templates):
        return None
    found = chat.find(name or str(folder))
    found = chat.Template(
        found.text, found.source, FolderTexts(folder).special_tokens | dict(found.tokens), date
    )
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        chat.render(found, said, add_generation_prompt=False)
        chat.render(found, said[:1], add_generation_prompt=True)
    except Refusal as error:
        raise Refusal(f"pretrained.gold: {error}") from None
    return found


def same_vocabulary(one: Tokenizer, other: Tokenizer) -> bool:
    """True where two tokenizers have the same tokens with the same ids."""
    return one is other or one.vocabulary() == other.vocabulary()


def foreign_marks(judge: Tokenizer, policy: Tokenizer) -> frozenset[str]:
    """Texts of the policy's special tokens that the judge's tokenizer would spell out.

    A BOS, EOS or pad is not among them: prompts and completions are handed over without. Nor are
    added tokens that are text like any other, such as Gemma's for HTML.
    """
    if same_vocabulary(judge, policy):
        return frozenset()
    ours, theirs = _special(policy), getattr(judge, "marks", {})
    ends = {policy.pad_id, *policy.eos_ids, *policy.prefix_ids}
    return frozenset(
        text for text, identity in ours.items() if text not in theirs and identity not in ends
    )


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    """Special tokens of a tokenizer of a file; others spell out every text."""
    special = getattr(tokenizer, "special", frozenset())
    return {
        text: identity
        for text, identity in getattr(tokenizer, "marks", {}).items()
        if identity in special
    }


def pattern(marks: Collection[str]) -> re.Pattern[str] | None:
    """Finds any of some texts; None where there are none."""
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def check_marks(folder: Path, marks: frozenset[str], task: Task | None) -> None:
    """Raises Refusal where prompts hold marks that the gold model's tokenizer would spell out.

    Args:
      task: whose prompts are looked at; None: any of the marks may be in them.
    """
    found = (
        next(iter(sorted(marks)), None) if task is None else _first(pattern(marks), _prompts(task))
    )
    if found is not None:
        raise Refusal(
            f"pretrained.gold {folder} has a tokenizer of its own, in which {found!r} of the "
            "policy's is no token: prompts "
            "with it would be spelled out; give a task of conversations, which are rendered again "
            "in the template that"
            " pretrained.gold_chat_template or the folder has, or a gold model of the policy's "
            "tokenizer"
        )


def _prompts(task: Task) -> Iterable[str]:
    return (
        task.prompt(split, n)
        for split in SPLITS
        for n in range(min(PROMPTS_READ, task.num_prompts(split)))
    )


def _first(marks: re.Pattern[str] | None, texts: Iterable[str]) -> str | None:
    found = (marks.search(text) for text in texts) if marks else ()
    return next((match[0] for match in found if match), None)


def check_template(task: Task, tokenizer: Tokenizer) -> None:
    """Raises Refusal where a special token that a task's chat template writes is none of the run's
    tokenizer.

    Only tokenizers of files have special tokens; others spell out every mark.
    """
    template = getattr(task, "template", None)
    if template is None or not hasattr(tokenizer, "marks"):
        return
    for name in ("bos_token", "eos_token"):
        text = template.tokens.get(name)
        if text and name in template.text and len(tokenizer.encode(text)) > 1:
            raise Refusal(
                f"chat template {template.source}: its {name} is {text!r}, which the run's "
                "tokenizer spells out in"
                f" {len(tokenizer.encode(text))} tokens; set task.{name} to a special token of it"
            )
