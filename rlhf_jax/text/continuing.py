"""Encodes and decodes text that continues other text, for tokenizers that treat the beginning of a
text in a special way.

A completion is encoded and decoded without its prompt. Most byte-level tokenizers need no care for
that. Those of Llama 2, Mistral and T5, sentencepiece models with `add_dummy_prefix`, and
byte-level ones with `add_prefix_space` put a space before every text and take one away from the
beginning of what they decode. A completion on its own would then begin with a space that its text
does not have, or lose the one that it has.

`find` tests a tokenizer and returns a `Continuation` if it needs one. A `Continuation` encodes a
text after an anchor, a short text that no merge joins to what follows, and drops the anchor's ids.
It decodes in the same way. The ids of a prompt, followed by those of its completion, are then the
ids of both as one text, provided that these have a token boundary between the two.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

Encode = Callable[[str], list[int]]
Decode = Callable[[list[int]], str]

CANDIDATES = (
    ".:\na1" + string.ascii_lowercase + string.digits + string.ascii_uppercase
)  # for anchors; the likely ones first
NUM_ANCHORS = 5
SPACES = ("", " ", "  ", "\n")


class Anchor(NamedTuple):
    """A text whose ids decode to a text that ends in it."""

    text: str
    ids: list[int]
    shown: str  # what the ids decode to


class Continuation:
    """Encodes and decodes what follows a token."""

    def __init__(self, encode: Encode, decode: Decode, marks: Mapping[str, int]):
        """Chooses the anchors.

        Args:
          encode, decode: of the tokenizer, without BOS and EOS.
          marks: ids of the special tokens, by the texts that they are recognised by.
        """
        self._encode, self._decode = encode, decode
        possible = (_anchor(encode, decode, text) for text in CANDIDATES)
        self._anchors = list(islice(filter(None, possible), NUM_ANCHORS))
        self._marks = frozenset(marks.values()) if self._begins_anew(marks) else frozenset()
        self.looks_back = bool(self._marks)

    def encode(self, before: int | None, text: str) -> list[int]:
        """Encodes a text that follows a token.

        Args:
          before: the token; None: any token of an ordinary text.
          text: to encode.

        Returns:
          The token ids of the text alone.
        """
        if before in self._marks:
            return self._encode(text)
        for anchor in self._anchors:
            whole = self._encode(anchor.text + text)
            if whole[: len(anchor.ids)] == anchor.ids:
                return whole[len(anchor.ids) :]
        return self._encode(text)

    def decode(self, before: int | None, ids: Sequence[int]) -> str:
        """Decodes ids that follow a token.

        Args:
          before: the token; None: any token of an ordinary text.
          ids: to decode.

        Returns:
          The text of the ids alone.
        """
        if before in self._marks:
            return self._decode(list(ids))
        for anchor in self._anchors:
            whole = self._decode([*anchor.ids, *ids])
            if whole.startswith(anchor.shown):
                return whole[len(anchor.shown) :]
        return self._decode(list(ids))

    def needed(self) -> bool:
        """True if some text has other ids as a continuation than alone, and only the former decode
        to it.
        """
        texts = [space + anchor.text for anchor in self._anchors for space in SPACES]
        return any(self._needed(anchor, text) for anchor in self._anchors for text in texts)

    def _needed(self, anchor: Anchor, text: str) -> bool:
        expected = anchor.shown + text
        if self._decode([*anchor.ids, *self._encode(text)]) == expected:
            return False
        whole = self._encode(anchor.text + text)
        return whole[: len(anchor.ids)] == anchor.ids and self._decode(whole) == expected

    def _begins_anew(self, marks: Mapping[str, int]) -> bool:
        """True if a text after a special token has the ids of the text alone, as with Llama 2's
        tokenizer.
        """
        for mark, identity in marks.items():
            for anchor in self._anchors:
                whole = self._encode(mark + anchor.text)
                if whole[:1] == [identity] and len(whole) > 1:
                    return whole[1:] == anchor.ids
        return False


def find(encode: Encode, decode: Decode, marks: Mapping[str, int]) -> Continuation | None:
    """Tests a tokenizer, and returns a `Continuation` if it needs one.

    Args:
      encode, decode: of the tokenizer, without BOS and EOS.
      marks: ids of the special tokens, by the texts that they are recognised by.

    Returns:
      The Continuation; None if `encode` and `decode` are right for continuations too.
    """
    continuation = Continuation(encode, decode, marks)
    return continuation if continuation.needed() else None


def _anchor(encode: Encode, decode: Decode, text: str) -> Anchor | None:
    ids = encode(text)
    shown = decode(ids)
    return Anchor(text, ids, shown) if ids and shown.endswith(text) else None
