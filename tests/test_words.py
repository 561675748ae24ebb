"""Docstrings begin with a noun or a verb, never with a question word or a relative word."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlhf_jax", "experiments", "configs")
REFUSED = {
    "what",
    "whether",
    "where",
    "of",
    "as",
    "by",
    "how",
    "which",
    "when",
    "who",
    "whose",
    "why",
    "that",
    "whatever",
}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def refused(source: str) -> list[str]:
    """First lines of docstrings that begin with a refused word."""
    found = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, DOCUMENTED)
    ]
    texts = [text for text in found if text and text.strip()]
    return [
        text.splitlines()[0] for text in texts if text.split()[0].strip('`,.:"').lower() in REFUSED
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_a_noun_or_a_verb(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    wrong = {
        str(path.relative_to(ROOT)): lines for path in files if (lines := refused(path.read_text()))
    }
    assert not wrong


def test_a_question_is_refused():
    source = '"""Whether it rains."""\ndef f():\n    """What it gives."""\nclass A:\n    """Of all: one."""\n'
    assert refused(source) == ["Whether it rains.", "What it gives.", "Of all: one."]
    assert refused('"""True where it rains."""\ndef f():\n    """Returns what it has."""\n') == []
