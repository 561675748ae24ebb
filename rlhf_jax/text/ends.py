"""Finds the ids that end a text, from the files of a tokenizer and of its model."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.text.folder_texts import FolderTexts


@dataclass(frozen=True)
class Vocabulary:
    """The parts of a tokenizer that `find` needs."""

    file: Path  # what messages call it
    size: int
    id_of: Callable[[str], int | None]
    text_of: Callable[[int], str | None]
    special: Collection[int]  # ids of tokens that are no ordinary text


def find(
    vocabulary: Vocabulary,
    asked: str,
    tokenizer: FolderTexts,
    model: FolderTexts,
    own: int | None = None,
    customary: Sequence[str] = (),
) -> tuple[int, ...]:
    """Returns every id that ends a row, the one that is appended to texts first.

    Args:
      vocabulary: of the tokenizer.
      asked: `tokenizer.eos`: one token, or several separated by spaces; overrides the files.
      tokenizer: the files beside the tokenizer; the first EOS that they name is appended to texts.
      model: the files of the policy's folder, whose ids end rows too.
      own: the end that the tokenizer's file itself has.
      customary: usual names of EOS tokens. If no file names an end and the vocabulary has exactly
        one of them, it is the end.

    Raises:
      Refusal: if there is no end, if one that is asked for is no token, and if files contradict
        each other.
    """
    if asked:
        return _asked(vocabulary, asked)
    named = [_named(vocabulary, text) for text in tokenizer.eos_texts[:1]] or (
        [] if own is None else [own]
    )
    named += [
        identity
        for text in tokenizer.eos_texts[1:]
        if (identity := vocabulary.id_of(text)) is not None
    ]
    ids = [*named, *_told(vocabulary, model, named)]
    if not ids:
        known = [identity for text in customary if (identity := vocabulary.id_of(text)) is not None]
        known = [identity for identity in known if identity in vocabulary.special]
        ids = known if len(known) == 1 else []
    if not ids:
        raise Refusal(f"{vocabulary.file} does not tell its EOS; {_remedy(vocabulary)}")
    return tuple(dict.fromkeys(ids))


def _asked(vocabulary: Vocabulary, asked: str) -> tuple[int, ...]:
    texts = [asked] if vocabulary.id_of(asked) is not None else asked.split() or [asked]
    return tuple(dict.fromkeys(_named(vocabulary, text) for text in texts))


def _named(vocabulary: Vocabulary, text: str) -> int:
    identity = vocabulary.id_of(text)
    if identity is None:
        raise Refusal(f"{vocabulary.file} has no token {text!r} for the EOS; {_remedy(vocabulary)}")
    return identity


def _told(vocabulary: Vocabulary, model: FolderTexts, named: Collection[int]) -> list[int]:
    """Ids that the model's files name and that are special tokens.

    Raises Refusal for a firm end that is an ordinary token or none.
    """
    ids = []
    for ends in model.model_ends():
        for identity in ends.ids:
            if identity in named or identity in vocabulary.special:
                ids.append(identity)
            elif ends.firm:
                text = vocabulary.text_of(identity) if identity < vocabulary.size else None
                reason = (
                    f"which has {vocabulary.size} tokens"
                    if text is None
                    else f"where it is the ordinary {text!r}"
                )
                raise Refusal(
                    f"{ends.source} says that token {identity} ends a text, which contradicts "
                    f"{vocabulary.file}, {reason};"
                    f" {_remedy(vocabulary)}"
                )
    return ids


def _remedy(vocabulary: Vocabulary) -> str:
    texts = [vocabulary.text_of(identity) for identity in sorted(vocabulary.special)]
    listed = ", ".join(filter(None, texts[:20])) + (", ..." if len(texts) > 20 else "")
    return (
        "set tokenizer.eos, or for another role's folder the eos_token of its "
        "tokenizer_config.json, to one of its tokens,"
        f" special ones: {listed or 'none'}"
    )
