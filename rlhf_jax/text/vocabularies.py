"""Compares the vocabularies of two models token by token: equal sizes do not make equal tokens.

A folder's tokens are read from its `tokenizer.json`, else from its sentencepiece model, else from
its `vocab.json` (byte-level) or `vocab.txt`, with the tokens that its other files add.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import json_texts
from rlhf_jax.text.codec import FileTokenizer
from rlhf_jax.text.file_tokenizers import (
    hugging_face,
    hugging_face_codec,
    sentencepiece,
    sentencepiece_codec,
)
from rlhf_jax.text.folder_texts import FolderTexts

TOKENIZER = "tokenizer.json"
MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARIES = ("vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Vocabulary:
    """The id of every token, by its text in the file."""

    file: Path
    ids: Mapping[str, int]
    special: frozenset[int] = frozenset()


def tokenizer_file(folder: Path) -> Path | None:
    """The file that defines a folder's tokens; None if there is none."""
    others = sorted(folder.glob("*.model"))
    names = (
        TOKENIZER,
        *MODELS,
        *(file.name for file in others[:1] if len(others) == 1),
        *VOCABULARIES,
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def folder_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a checkpoint folder; None if it has no tokenizer.

    Raises Refusal for a broken one.
    """
    file = tokenizer_file(folder)
    if file is None:
        return None
    if file.name not in VOCABULARIES:
        codec = hugging_face_codec(file) if file.name == TOKENIZER else sentencepiece_codec(file)[0]
        return Vocabulary(file, codec.vocabulary(), frozenset(codec.marks.values()))
    ids = json_texts.read_object(file) if file.suffix == ".json" else _lines(file)
    if not all(isinstance(identity, int) for identity in ids.values()):
        raise Refusal(f"{file} is no vocabulary; accepted: an object of ids by their tokens")
    added = {
        token.text: token.id for token in FolderTexts(folder).added_tokens if token.id is not None
    }
    return Vocabulary(file, ids | added, frozenset(added.values()))


def tokenizer_of(folder: Path) -> FileTokenizer | None:
    """The tokenizer of a checkpoint folder; None if it has none.

    Raises Refusal for one that cannot be read.
    """
    file = tokenizer_file(folder)
    if file is None:
        return None
    if file.name in VOCABULARIES:
        raise Refusal(
            f"{folder} holds {file.name} but no {TOKENIZER}: save its tokenizer again with "
            "transformers"
        )
    return hugging_face(str(file)) if file.name == TOKENIZER else sentencepiece(str(file))


def difference(ours: Mapping[str, int], theirs: Vocabulary, lacking: bool, special: bool) -> str:
    """Describes the first token whose text differs between two vocabularies.

    Args:
      ours: ids by text.
      theirs: the other vocabulary.
      lacking: an id of ours that they lack counts as a difference.
      special: an id that is a special token of theirs may differ.

    Returns:
      The difference in words; "" if there is none.
    """
    texts = {identity: text for text, identity in theirs.ids.items()}
    for text, identity in sorted(ours.items(), key=lambda item: item[1]):
        their_text = texts.get(identity)
        if (
            their_text == text
            or (their_text is None and not lacking)
            or (their_text is not None and special and identity in theirs.special)
        ):
            continue
        shown = "no token" if their_text is None else repr(their_text)
        return f"token {identity} is {text!r} here and {shown} there"
    return ""


def _lines(file: Path) -> dict[str, int]:
    return {
        line: index
        for index, line in enumerate(json_texts.read_text(file).rstrip("\n").split("\n"))
    }
