"""Tokenizers behind one interface: words, bytes, sentencepiece models, Hugging Face `tokenizer.json` files."""

from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back. `decode(encode(text)) == text` for text of the tokenizer's alphabet."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS or EOS."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; pad and EOS ids are dropped."""
        ...
