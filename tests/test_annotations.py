"""Annotations that are exactly `Any` say nothing: there are few of them."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlhf_jax", "experiments")
LEFT_OUT = ROOT / "experiments" / "bench"
MOST = 60
"""Annotations that may be `Any`: values that really can be anything, such as a user's object."""


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Annotations of parameters of all kinds, of returns, and of annotated assignments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            annotation = node.returns
        elif isinstance(node, ast.arg | ast.AnnAssign):
            annotation = node.annotation
        else:
            continue
        if annotation is not None:
            yield annotation


def count(source: str) -> int:
    """Annotations of a source that are exactly `Any`, also as a text or under `typing`."""
    texts = (
        annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
        for annotation in annotations(ast.parse(source))
    )
    return sum(text in ("Any", "typing.Any") for text in texts)


def test_few_annotations_are_any():
    files = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(LEFT_OUT)
    ]
    assert len(files) > 100
    by_file = Counter({str(path.relative_to(ROOT)): count(path.read_text()) for path in files})
    lines = [f"{number:4d}  {name}" for name, number in by_file.most_common() if number]
    print(*lines, sep="\n")
    assert by_file.total() <= MOST


def test_every_kind_of_annotation_is_counted():
    parameters = "def f(a: Any, /, b: Any, *args: Any, c: Any, **kwargs: Any): ..."
    assert count(parameters) == 5
    assert (
        count("async def f() -> Any: ...\ndef g() -> typing.Any: ...\ndef h() -> 'Any': ...") == 3
    )
    assert count("x: Any = 1\nclass A:\n    y: Any\n") == 2
    assert count("def f(a: int, b: dict[str, Any]) -> Callable[..., Any]: ...\nx: list[Any]") == 0
