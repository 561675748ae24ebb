"""Tables, cards, pictures and sections of a page as data, which `templates/elements.html.jinja`
turns into markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text, a line below it, and marks.

    `kind` is its colour. `cut` marks a completion without an EOS.
    """

    text: str
    note: str = ""
    kind: Literal["", "up", "down", "muted"] = ""
    cut: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; a plain text is a cell too.

    `kinds` has a class for each column: "text", "number" or "". With `stack`, a narrow page shows
    the cells of a row below one another, each with the name of its column.
    """

    element: ClassVar = "table"
    head: Sequence[str]
    kinds: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    stack: bool = False


@dataclass(frozen=True)
class Card:
    """A headline figure: the value, the one before training where it is known, and a note."""

    title: str
    value: str
    note: str
    before: str = ""


@dataclass(frozen=True)
class Drawing:
    """A picture as `<svg>`, with the line below it; `narrow` is the same for a narrow page."""

    svg: Markup
    name: str
    note: str = ""
    wide: bool = False
    narrow: Markup | None = None


@dataclass(frozen=True)
class Drawings:
    """Pictures in as many columns as the page has room for; each has at least the width `least`."""

    element: ClassVar = "pictures"
    drawings: Sequence[Drawing]
    least: str


@dataclass(frozen=True)
class Note:
    """A muted paragraph."""

    element: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    element: ClassVar = "heading"
    text: str


@dataclass(frozen=True)
class Block:
    """Lines in a fixed width, with their own breaks."""

    element: ClassVar = "block"
    lines: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """Elements that open on a click; `title` is that of a section, "" inside of one."""

    element: ClassVar = "folded"
    summary: str
    parts: "Sequence[Element]"
    title: str = ""


@dataclass(frozen=True)
class Section:
    """Elements under a title; a text is a paragraph, in which `words` between backticks are code."""

    element: ClassVar = "section"
    title: str
    parts: "Sequence[Element]"


Element = str | Table | Drawings | Note | Heading | Block | Folded | Section
