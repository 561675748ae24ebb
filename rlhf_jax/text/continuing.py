"""Text that continues other text: its ids and back, for tokenizers that treat the beginning of a
text in a way of its own.

A completion is encoded and decoded apart from its prompt. For most byte-level tokenizers nothing is
wrong with that. Those of Llama 2, Mistral and T5, sentencepiece models with `add_dummy_prefix`, and
byte-level ones with `add_prefix_space` put a space before every text and take one away from the
beginning of what they decode. A completion on its own would then begin with a space that its text
does not have, or lose the one that it has.

`find` tries how a tokenizer behaves and gives a `Continuation` for those that need one. It encodes
a text behind an anchor, a short text that no merge joins to what follows, and drops the anchor's
ids; it decodes in the same way. The ids of a prompt and of its completion are then the ids of both
as one text, wherever the latter have a boundary there.
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
    """A text whose ids give it back, what stands before it aside."""

    text: str
    ids: list[int]
    shown: str  # what the ids decode to


class Continuation:
    """Encodes and decodes what follows a token."""

    def __init__(self, encode: Encode, decode: Decode, marks: Mapping[str, int]):
        """`marks`: ids of the special tokens, by the texts that they are recognised by."""
        self._encode, self._decode = encode, decode
        possible = (_anchor(encode, decode, text) for text in CANDIDATES)
        self._anchors = list(islice(filter(None, possible), NUM_ANCHORS))
        self._marks = frozenset(marks.values()) if self._begins_anew(marks) else frozenset()
        self.looks_back = bool(self._marks)

    def encode(self, before: int | None, text: str) -> list[int]:
        """Ids of a text that follows the token `before`; None: any token of an ordinary text."""
        if before in self._marks:
            return self._encode(text)
        for anchor in self._anchors:
            whole = self._encode(anchor.text + text)
            if whole[: len(anchor.ids)] == anchor.ids:
                return whole[len(anchor.ids) :]
        return self._encode(text)

    def decode(self, before: int | None, ids: Sequence[int]) -> str:
        """The text of ids that follow the token `before`."""
        if before in self._marks:
            return self._decode(list(ids))
        for anchor in self._anchors:
            whole = self._decode([*anchor.ids, *ids])
            if whole.startswith(anchor.shown):
                return whole[len(anchor.shown) :]
        return self._decode(list(ids))

    def needed(self) -> bool:
        """True where a text on its own has other ids than as a continuation, and the latter are
        right.
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
        """True where a text after a special token is encoded as one on its own is, as by Llama 2's
        tokenizer.
        """
        for mark, identity in marks.items():
            for anchor in self._anchors:
                whole = self._encode(mark + anchor.text)
                if whole[:1] == [identity] and len(whole) > 1:
                    return whole[1:] == anchor.ids
        return False


def find(encode: Encode, decode: Decode, marks: Mapping[str, int]) -> Continuation | None:
    """Returns a Continuation, or None where `encode` and `decode` give continuations the right ids
    and texts themselves.
    """
    continuation = Continuation(encode, decode, marks)
    return continuation if continuation.needed() else None


def _anchor(encode: Encode, decode: Decode, text: str) -> Anchor | None:
    ids = encode(text)
    shown = decode(ids)
    return Anchor(text, ids, shown) if ids and shown.endswith(text) else None
