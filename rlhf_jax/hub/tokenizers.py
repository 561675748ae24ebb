"""Tokenizers behind one interface: words, characters, bytes, sentencepiece models, Hugging Face tokenizer files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_jax.hub.file_tokenizers import hugging_face, sentencepiece
from rlhf_jax.refusal import Refusal

PAD_ID = 0  # of the tokenizers that need no file; those from files keep the ids of their file
EOS_ID = 1
NUM_SPECIAL = 2


class Tokenizer(Protocol):
    """Text to ids and back. `decode(encode(text)) == text` for text of the tokenizer's alphabet."""

    vocab_size: int
    eos_id: int
    pad_id: int
    prefix_ids: tuple[int, ...]  # what stands before every prompt: a BOS, or nothing

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS or EOS."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; pad and EOS ids are dropped."""
        ...


@dataclass(frozen=True)
class Config:
    """Which tokenizer: words or characters (of the task's vocabulary), bytes, sentencepiece or hf (of a file)."""

    kind: str = "words"
    path: str = ""  # sentencepiece: the .model file; hf: tokenizer.json or its folder
    eos: str = ""  # hf: the EOS token's text where the file does not tell
    bos: bool = False  # sentencepiece: prompts begin with the model's BOS (hf: as the file says)


class Symbols:
    """A closed list of symbols, ids in the list's order after pad 0 and EOS 1."""

    eos_id = EOS_ID
    pad_id = PAD_ID
    prefix_ids = ()

    def __init__(self, symbols: Sequence[str], separator: str, noun: str):
        self.symbols = tuple(symbols)
        self.separator = separator
        self.noun = noun
        self.vocab_size = NUM_SPECIAL + len(self.symbols)
        self.id_of = {symbol: NUM_SPECIAL + place for place, symbol in enumerate(self.symbols)}
        if len(self.id_of) != len(self.symbols):
            twice = sorted({symbol for symbol in self.symbols if self.symbols.count(symbol) > 1})
            raise Refusal(f"the {noun} vocabulary lists {', '.join(map(repr, twice))} more than once")

    def encode(self, text: str) -> list[int]:
        """Ids of the text; Refusal names a symbol that the vocabulary lacks, and the text."""
        pieces = text.split(self.separator) if self.separator else list(text)
        try:
            return [self.id_of[piece] for piece in pieces] if text else []
        except KeyError as error:
            raise Refusal(
                f"{self.noun} {error.args[0]!r} of the text {text!r} is not among the {len(self.symbols)} {self.noun}s"
                " of the vocabulary"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The symbols joined; pad and EOS ids are dropped; Refusal names an id outside the vocabulary."""
        for identity in ids:
            if not 0 <= identity < self.vocab_size:
                raise Refusal(f"id {identity} is not an id of this {self.noun} tokenizer: 0 to {self.vocab_size - 1}")
        return self.separator.join(self.symbols[i - NUM_SPECIAL] for i in ids if i >= NUM_SPECIAL)


def words(vocabulary: Sequence[str]) -> Symbols:
    """Words that stand between single spaces; punctuation is a word of its own: `good .`"""
    for word in vocabulary:
        if not word or any(character.isspace() for character in word):
            raise Refusal(f"{word!r} cannot be a word of the vocabulary: words are not empty and hold no white space")
    return Symbols(vocabulary, separator=" ", noun="word")


def characters(alphabet: Sequence[str]) -> Symbols:
    """One id a character of the alphabet."""
    for character in alphabet:
        if len(character) != 1:
            raise Refusal(f"{character!r} cannot be of the alphabet: a character is one code point")
    return Symbols(alphabet, separator="", noun="character")


class ByteTokenizer:
    """UTF-8 bytes, ids 2 to 257. Sampled bytes that are not UTF-8 decode to the replacement character."""

    vocab_size = NUM_SPECIAL + 256
    eos_id = EOS_ID
    pad_id = PAD_ID
    prefix_ids = ()

    def encode(self, text: str) -> list[int]:
        return [NUM_SPECIAL + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - NUM_SPECIAL for i in ids if i >= NUM_SPECIAL).decode(errors="replace")


def make(config: Config, vocabulary: Sequence[str] | None) -> Tokenizer:
    """The tokenizer that a config names; `vocabulary` is the task's, None where its text is open.

    Raises Refusal for an unknown kind, a missing vocabulary, and what the factories raise.
    """
    factories: Mapping[str, Callable[[], Tokenizer]] = {
        "words": lambda: words(_closed(vocabulary, config.kind)),
        "characters": lambda: characters(_closed(vocabulary, config.kind)),
        "bytes": ByteTokenizer,
        "sentencepiece": lambda: sentencepiece(config.path, config.bos),
        "hf": lambda: hugging_face(config.path, config.eos),
    }
    if config.kind not in factories:
        raise Refusal(f"no tokenizer {config.kind!r}; there are: {', '.join(sorted(factories))}")
    return factories[config.kind]()


def _closed(vocabulary: Sequence[str] | None, kind: str) -> Sequence[str]:
    if vocabulary is None:
        raise Refusal(f"tokenizer.kind {kind!r} needs a task with a closed vocabulary; use bytes, sentencepiece or hf")
    return vocabulary
