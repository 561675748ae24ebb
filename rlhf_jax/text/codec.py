"""Text to ids and back as a file has it, and the tokenizer that a run makes of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import continuing, ends
from rlhf_jax.text.folder_texts import FolderTexts

EOS_TEXTS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


@dataclass(frozen=True)
class Codec:
    """A tokenizer's file and folder, read: text to ids and back, whatever ends a text."""

    file: Path
    texts: FolderTexts
    size: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    encode_many: Callable[[Sequence[str]], list[list[int]]]
    id_of: Callable[[str], int | None]
    vocabulary: Callable[[], dict[str, int]]
    marks: Mapping[str, int]  # special and added tokens by the texts that they are recognised by
    special: frozenset[int]  # those of them that are no text, such as the marks of a chat template
    prefix_ids: tuple[int, ...] = ()

    def within(self, size: int, beyond: Mapping[str, int]) -> "Codec":
        """The same for a model of `size` tokens.

        Encoding a text that has a token `beyond` them raises Refusal.
        """
        names = {identity: text for text, identity in beyond.items()}

        def checked(ids: list[int]) -> list[int]:
            unknown = next((identity for identity in ids if identity >= size), None)
            if unknown is not None:
                raise Refusal(
                    f"a text holds {names[unknown]!r}, token {unknown} of {self.file}, but "
                    f"model.vocab_size is {size}"
                )
            return ids

        return replace(
            self,
            size=size,
            encode=lambda text: checked(self.encode(text)),
            encode_many=lambda many: [checked(ids) for ids in self.encode_many(many)],
            vocabulary=lambda: {
                text: identity for text, identity in self.vocabulary().items() if identity < size
            },
            marks={text: identity for text, identity in self.marks.items() if identity < size},
        )

    def named(self, name: str) -> int | None:
        """The id of a special token that the folder names (`pad_token`); None where it names none."""
        text = self.texts.special_tokens.get(name)
        return None if text is None else self.id_of(text)

    def ends(self, asked: str, model: Path | None, own: int | None = None) -> tuple[int, ...]:
        """Every id that ends a row: see `text/ends.py`.

        `model` is the policy's folder, where it is another one.
        """
        texts = {identity: text for text, identity in self.marks.items()}
        known = ends.Vocabulary(
            self.file,
            self.size,
            self.id_of,
            lambda i: texts.get(i) or self._text_of(i),
            frozenset(texts),
        )
        model_texts = self.texts if model is None else FolderTexts(model)
        model_texts = model_texts if model_texts.model_ends() else self.texts
        return ends.find(
            known, asked, self.texts, model_texts, own, () if own is not None else EOS_TEXTS
        )

    def _text_of(self, identity: int) -> str | None:
        return next((text for text, known in self.vocabulary().items() if known == identity), None)


class FileTokenizer:
    """A tokenizer of a file, with its own ids."""

    longest_completion: Callable[[], int] | None = None

    def __init__(self, codec: Codec, eos_ids: tuple[int, ...], pad_id: int):
        self.vocab_size = codec.size
        self.eos_ids = eos_ids
        self.eos_id = eos_ids[0]
        self.pad_id = pad_id
        self.prefix_ids = codec.prefix_ids
        self.file = codec.file
        self.folder = codec.file.parent
        self.marks = codec.marks
        self.special = codec.special
        self.encode_many = codec.encode_many
        self.vocabulary = codec.vocabulary
        self._codec = codec
        self._dropped = frozenset((pad_id, *eos_ids))
        self._continuation = continuing.find(codec.encode, codec.decode, codec.marks)
        self.looks_back = self._continuation is not None and self._continuation.looks_back

    def encode(self, text: str) -> list[int]:
        return self._codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._codec.decode(self._kept(ids))

    def encode_after(self, before: int | None, text: str) -> list[int]:
        return (
            self.encode(text)
            if self._continuation is None
            else self._continuation.encode(before, text)
        )

    def decode_after(self, before: int | None, ids: Sequence[int]) -> str:
        kept = self._kept(ids)
        return (
            self._codec.decode(kept)
            if self._continuation is None
            else self._continuation.decode(before, kept)
        )

    def within(self, size: int) -> "FileTokenizer":
        """The tokenizer for a model that knows `size` tokens, fewer than the files have.

        Folders name tokens that their model has no row for, such as those of a picture, or a pad.
        No text of a run should have one: encoding a text that has raises Refusal. So does this
        where ordinary text or the EOS needs such a token.
        """
        beyond = {
            text: identity for text, identity in self.vocabulary().items() if identity >= size
        }
        ordinary = [text for text in beyond if text not in self.marks]
        if ordinary or self.eos_id >= size:
            needed = ordinary[0] if ordinary else "its EOS"
            raise Refusal(
                f"model.vocab_size is {size}, but the tokenizer has {self.vocab_size} tokens, "
                f"{needed!r} among those beyond"
            )
        eos_ids = tuple(identity for identity in self.eos_ids if identity < size)
        return FileTokenizer(
            self._codec.within(size, beyond),
            eos_ids,
            self.pad_id if self.pad_id < size else eos_ids[0],
        )

    def _kept(self, ids: Sequence[int]) -> list[int]:
        """Without ends and pads, and without ids of the model's that no token has."""
        return [int(i) for i in ids if i < self.vocab_size and i not in self._dropped]
