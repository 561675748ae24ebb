"""Reads a tokenizer's file as a `Codec`, and makes a run's tokenizer of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_jax.refusal import Refusal
from rlhf_jax.text import continuing, ends
from rlhf_jax.text.folder_texts import FolderTexts

EOS_TEXTS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


@dataclass(frozen=True)
class Codec:
    """The content of a tokenizer's file and folder, before a run has chosen the ends of a text."""

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
        """Restricts the codec to the tokens of a smaller model.

        Args:
          size: tokens of the model.
          beyond: the ids of the tokens that the model lacks, by their texts.

        Returns:
          A codec whose `encode` and `encode_many` raise Refusal for a text with such a token.
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
        """Returns every id that ends a row, the one that is appended to texts first.

        Args:
          asked: the setting `tokenizer.eos`; "": the files decide.
          model: the folder of the policy; None, or a folder that names no ends: this folder's.
          own: the end that the tokenizer's file itself has.

        Raises:
          Refusal: as `ends.find`.
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
        """Encodes a text that continues another one: see `Tokenizer.encode_after`."""
        return (
            self.encode(text)
            if self._continuation is None
            else self._continuation.encode(before, text)
        )

    def decode_after(self, before: int | None, ids: Sequence[int]) -> str:
        """Decodes ids that continue others: see `Tokenizer.decode_after`."""
        kept = self._kept(ids)
        return (
            self._codec.decode(kept)
            if self._continuation is None
            else self._continuation.decode(before, kept)
        )

    def within(self, size: int) -> "FileTokenizer":
        """Returns the tokenizer for a model of `size` tokens, fewer than the files have.

        A folder may name tokens that its model has no embedding for, such as an image token or a
        pad. Encoding a text with such a token raises Refusal.

        Raises Refusal if a token beyond `size` is ordinary text or the EOS.
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
        """Drops ends, pads and ids that no token of the file has: a model may have more rows."""
        return [int(i) for i in ids if i < self.vocab_size and i not in self._dropped]
