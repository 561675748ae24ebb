"""Texts in units of length, which other modules of the laboratory import."""


def words(text: str) -> int:
    """The number of words of a text."""
    return len(text.split())
