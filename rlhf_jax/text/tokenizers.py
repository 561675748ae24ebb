"""Tokenizers behind one interface: words, characters, bytes, sentencepiece models, Hugging Face
tokenizer files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rlhf_jax.refusal import Refusal
from rlhf_jax.text.codec import FileTokenizer
from rlhf_jax.text.file_tokenizers import hugging_face, sentencepiece

PAD_ID = 0  # of the tokenizers that need no file; those from files keep the ids of their file
EOS_ID = 1
NUM_SPECIAL = 2


class Tokenizer(Protocol):
    """Encodes texts and decodes ids. `decode(encode(text)) == text` for text of its alphabet.

    `encode_after` and `decode_after` do so for a completion, so that the ids of a prompt followed
    by those of its completion are the ids of both as one text.
    """

    vocab_size: int
    eos_id: int  # appended to texts
    eos_ids: tuple[int, ...]  # every id that ends a sampled row, `eos_id` first
    pad_id: int
    looks_back: bool  # whether a completion's ids depend on the last token of its prompt
    prefix_ids: tuple[int, ...]  # put before every prompt: a BOS, or nothing
    longest_completion: (
        Callable[[], int] | None
    )  # tokens of its task's longest reference; None: of no task

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS or EOS."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; pad and EOS ids are dropped."""
        ...

    def encode_after(self, before: int | None, text: str) -> list[int]:
        """Encodes a text that continues another one.

        Args:
          before: the last token of the text before; None: any token of an ordinary text.
          text: to encode.

        Returns:
          The token ids, without EOS.
        """
        ...

    def decode_after(self, before: int | None, ids: list[int]) -> str:
        """Decodes ids that continue others.

        Args:
          before: the id before them; None: any token of an ordinary text.
          ids: to decode; pad and EOS ids are dropped.

        Returns:
          The text.
        """
        ...

    def vocabulary(self) -> Mapping[str, int]:
        """The id of every token, by its text in the tokenizer's file."""
        ...


@dataclass(frozen=True)
class Config:
    """Kind and file of a tokenizer: words or characters (of the task's vocabulary), bytes,
    sentencepiece or hf (of a file).
    """

    # words and characters have the task's vocabulary; the last two read a file
    kind: Literal["words", "characters", "bytes", "sentencepiece", "hf"] = "words"
    path: str = ""  # sentencepiece: the .model file; hf: tokenizer.json or its folder
    # of a file: the EOS, in place of what the files say; several between spaces: the first is
    # appended to texts
    eos: str = ""
    bos: bool = False  # sentencepiece: prompts begin with the model's BOS (hf: as the file says)


class _Apart:
    """Base of tokenizers that encode a text independently of what precedes it, with one EOS."""

    eos_id = EOS_ID
    eos_ids: tuple[int, ...] = (EOS_ID,)
    pad_id = PAD_ID
    looks_back = False
    prefix_ids = ()
    longest_completion: Callable[[], int] | None = None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError

    def encode_after(self, before: int | None, text: str) -> list[int]:
        del before
        return self.encode(text)

    def decode_after(self, before: int | None, ids: Sequence[int]) -> str:
        del before
        return self.decode(ids)


class Symbols(_Apart):
    """A closed list of symbols, ids in the list's order after pad 0 and EOS 1."""

    SHOWN = 8  # symbols that an error names

    def __init__(self, symbols: Sequence[str], separator: str, noun: str):
        self.symbols = tuple(symbols)
        self.separator = separator
        self.noun = noun
        self.vocab_size = NUM_SPECIAL + len(self.symbols)
        self.id_of = {symbol: NUM_SPECIAL + index for index, symbol in enumerate(self.symbols)}
        if len(self.id_of) != len(self.symbols):
            twice = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise Refusal(
                f"the {noun} vocabulary lists {', '.join(map(repr, twice))} more than once"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the text. Raises Refusal for a symbol that the vocabulary lacks."""
        pieces = text.split(self.separator) if self.separator else list(text)
        try:
            return [self.id_of[piece] for piece in pieces] if text else []
        except KeyError as error:
            raise Refusal(
                f"{self.noun} {error.args[0]!r} of the text {text!r} is not among the "
                f"{len(self.symbols)} {self.noun}s of the vocabulary, such as "
                f"{', '.join(map(repr, self.symbols[: self.SHOWN]))}"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The symbols joined, without pad and EOS. Raises Refusal for an unknown id."""
        for identity in ids:
            if not 0 <= identity < self.vocab_size:
                raise Refusal(
                    f"id {identity} is not an id of this {self.noun} tokenizer: 0 to "
                    f"{self.vocab_size - 1}"
                )
        return self.separator.join(self.symbols[i - NUM_SPECIAL] for i in ids if i >= NUM_SPECIAL)

    def vocabulary(self) -> Mapping[str, int]:
        return self.id_of


def words(vocabulary: Sequence[str]) -> Symbols:
    """Words separated by single spaces; punctuation is a word of its own: `good .`"""
    for word in vocabulary:
        if not word or any(character.isspace() for character in word):
            raise Refusal(
                f"{word!r} cannot be a word of the vocabulary: words are not empty and hold no "
                "white space"
            )
    return Symbols(vocabulary, separator=" ", noun="word")


def characters(alphabet: Sequence[str]) -> Symbols:
    """One id per character of the alphabet."""
    for character in alphabet:
        if len(character) != 1:
            raise Refusal(f"{character!r} cannot be of the alphabet: a character is one code point")
    return Symbols(alphabet, separator="", noun="character")


class ByteTokenizer(_Apart):
    """UTF-8 bytes, ids 2 to 257.

    Sampled bytes that are not UTF-8 decode to the replacement character.
    """

    vocab_size = NUM_SPECIAL + 256

    def encode(self, text: str) -> list[int]:
        return [NUM_SPECIAL + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL).decode(errors="replace")

    def vocabulary(self) -> Mapping[str, int]:
        return {f"<0x{byte:02X}>": NUM_SPECIAL + byte for byte in range(256)}


def make(config: Config, vocabulary: Sequence[str] | None, model: Path | None = None) -> Tokenizer:
    """Makes the tokenizer that a config names.

    Args:
      config: kind and file.
      vocabulary: the closed list of the task's words; None: its text is open.
      model: the folder of the policy, whose ends of a text count too; None: there is none.

    Raises:
      Refusal: for an unknown kind, a missing vocabulary, and what the factories raise.
    """
    factories: Mapping[str, Callable[[], Tokenizer]] = {
        "words": lambda: words(_closed(vocabulary, config.kind)),
        "characters": lambda: characters(_closed(vocabulary, config.kind)),
        "bytes": ByteTokenizer,
        "sentencepiece": lambda: sentencepiece(config.path, config.bos, config.eos, model),
        "hf": lambda: hugging_face(config.path, config.eos, model),
    }
    if config.kind not in factories:
        raise Refusal(f"no tokenizer {config.kind!r}; there are: {', '.join(sorted(factories))}")
    return factories[config.kind]()


def within(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """Returns the tokenizer for a model of `size` tokens.

    Args:
      tokenizer: of texts.
      size: rows of the model's embedding.

    Raises Refusal if the tokenizer needs more tokens.
    """
    if tokenizer.vocab_size <= size:
        return tokenizer
    if not isinstance(tokenizer, FileTokenizer):
        raise Refusal(
            f"model.vocab_size is {size}, but the tokenizer has {tokenizer.vocab_size} tokens"
        )
    return tokenizer.within(size)


def _closed(vocabulary: Sequence[str] | None, kind: str) -> Sequence[str]:
    if vocabulary is None:
        raise Refusal(
            f"tokenizer.kind {kind!r} needs a task with a closed vocabulary; use bytes, "
            "sentencepiece or hf"
        )
    return vocabulary
