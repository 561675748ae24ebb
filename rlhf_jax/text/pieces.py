"""Adds marks to sentencepiece models: their control symbols and added tokens are recognised in
texts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from rlhf_jax.text import continuing


class Processor(Protocol):
    """The methods of `sentencepiece.SentencePieceProcessor` that are called here."""

    def id_to_piece(self, id: int, /) -> str: ...

    def get_piece_size(self) -> int: ...

    def is_control(self, id: int, /) -> bool: ...

    def encode(self, text: str, /) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int], /) -> str: ...


class Pieces:
    """Encodes and decodes text with marks in it.

    The library encodes the text of a control symbol (`<s>`, `</s>`, `[INST]`) as ordinary pieces,
    and drops its id in decoding. Here a mark has its id. Text after a mark is encoded without the
    space that the model puts before a text, as chat templates expect (`legacy: false` of
    transformers).
    """

    def __init__(self, processor: Processor, added: Mapping[str, int]):
        """Wraps a processor.

        Args:
          processor: of the sentencepiece library.
          added: ids of tokens beside those of the model, by their texts.
        """
        control = {
            processor.id_to_piece(i): i
            for i in range(processor.get_piece_size())
            if processor.is_control(i)
        }
        self.marks: dict[str, int] = {
            text: identity for text, identity in (control | dict(added)).items() if text
        }
        self._texts = {identity: text for text, identity in self.marks.items()}
        longest_first = sorted(self.marks, key=len, reverse=True)
        self._pattern = (
            re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        )
        self._processor = processor
        self._continuation = continuing.find(self._plain, processor.decode, {})

    def _plain(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, marks included."""
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            ids += self._between(text[start : match.start()], first=not start)
            ids.append(self.marks[match[0]])
            start = match.end()
        return ids + self._between(text[start:], first=not start)

    def _between(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if first or self._continuation is None:
            return self._plain(text)
        return self._continuation.encode(None, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, marks included."""
        texts: list[str] = []
        run: list[int] = []
        for identity in (*ids, None):
            if identity is not None and identity not in self._texts:
                run.append(identity)
                continue
            if run:
                plain = not texts or self._continuation is None
                texts.append(self._processor.decode(run) if plain else self._continued(run))
                run = []
            if identity is not None:
                texts.append(self._texts[identity])
        return "".join(texts)

    def _continued(self, ids: list[int]) -> str:
        assert self._continuation is not None
        return self._continuation.decode(None, ids)
