"""Writes the generated pages of the documentation's reference: `python -m experiments.reference
--to=FOLDER`.

Every build of the site writes them anew (`docs/conf.py`): keys of a config from the components'
dataclasses and the comments beside their fields, commands from their own help, and a page of the
API for each package from its docstrings.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import pkgutil
import re
import sys
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import rlhf_jax
from rlhf_jax import config, registry
from rlhf_jax.building.nodes import NODES, Run
from rlhf_jax.cli import command
from rlhf_jax.cli import main as script
from rlhf_jax.models.common import family as families
from rlhf_jax.run_directory import keys

COMPONENTS = {"algorithm": "algorithms", "task": "tasks"}
"""Node of a config -> the package whose components have its keys; `model` has families."""
CLASSES = {
    keys.Class.FREE: "changes no number of training",
    keys.Class.EVALUATION: "changes what an evaluation's figures mean",
    keys.Class.ROUNDING: "changes numbers by rounding only",
    keys.Class.COMPUTED: "may differ between stages, not within one",
    keys.Class.EXTENDING: "may grow in the same directory under constant schedules",
    keys.Class.PLACE: "names a file or a folder, whose content is compared",
    keys.Class.NUMBERS: "enters the numbers",
}
COMMENT = re.compile(r"#+\s*")
PRAGMA = re.compile(r"\s*#?\s*(pyright|type|noqa):.*")


def meanings(cls: type) -> dict[str, str]:
    """The comment of each field of a dataclass: beside it, or else on the lines directly above it.

    Fields of a class that it extends are included.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and "__annotations__" in vars(base):
            found |= _own_meanings(base)
    return found


def _own_meanings(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: text
        for token in tokens
        if token.type == tokenize.COMMENT
        and (text := PRAGMA.sub("", COMMENT.sub("", token.string, count=1)).strip())
    }
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = node.lineno
        while lines[first - 2].strip().startswith("#"):
            first -= 1
        above = range(first, node.lineno)
        own = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        found[node.target.id] = " ".join(comments[n] for n in [*above, *own] if n in comments)
    return {name: text for name, text in found.items() if text}


def accepted(kind: object) -> str:
    """The values that an annotation accepts, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bounds = [str(b) for b in arguments[1:] if isinstance(b, config.Bounds | config.Unbounded)]
        shown = bounds[0].replace(f" to {'2**31 - 1'}", " or more") if bounds else ""
        return f"{accepted(arguments[0])}, {shown}" if shown else accepted(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"several of: {accepted(arguments[0])}"
    return getattr(kind, "__name__", str(kind))


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config as its page shows it."""

    name: str
    default: str
    accepted: str
    meaning: str
    kind: keys.Class


def keys_of(cls: type, where: str, instance: object = None) -> Iterator[Key]:
    """The keys of a dataclass, those of dataclasses inside of it included.

    Args:
      cls: a component's `Config`.
      where: the node's key; "" for the top.
      instance: whose values are the defaults; where it is None, those of the class.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    said = meanings(cls)
    for field in dataclasses.fields(cls):
        name = f"{where}.{field.name}" if where else field.name
        value = _default(field) if instance is None else getattr(instance, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from keys_of(type(value), name, value)
            continue
        shown = "–" if value is dataclasses.MISSING else repr(value)
        yield Key(
            name, shown, accepted(hints[field.name]), said.get(field.name, ""), keys.class_of(name)
        )


def _default(field: "dataclasses.Field[object]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def sections() -> Iterator[tuple[str, str, type, list[Key]]]:
    """Title, node, dataclass and keys of every component in the package."""
    yield "The run", "", Run, list(keys_of(Run, ""))
    for node, cls in NODES.items():
        yield node, node, cls, list(keys_of(cls, node))
    for node, folder in COMPONENTS.items():
        for name in registry.names(folder):
            cls = registry.settings(folder, name)
            yield f"{node}, {name}", node, cls, list(keys_of(cls, node))
    for name in registry.names("models"):
        cls = families.find(name).config
        yield f"model, {name}", "model", cls, list(keys_of(cls, "model"))


def config_keys() -> str:
    """The page of all keys of a config."""
    lines = [
        "# Keys of a config",
        "",
        "Every key with its default, what it accepts, its meaning, and the effect of a change on a "
        "run that exists. The page is made from the `Config` of each component. A config file, and "
        "`--config.<key>=<value>` on the command line, change a value. `--help` beside a config "
        "lists its keys with the values that they have there.",
        "",
        "The last column says what a change does to a run that has begun:",
        "",
        *(f"* **{kind.value}**: {said}" for kind, said in CLASSES.items()),
        "",
        "`algorithm.name`, `task.name` and `model.family` choose a component, whose own keys stand "
        "beside them. A reward's settings are `reward_settings.<label>.<key>`.",
        "",
    ]
    for title, node, cls, found in sections():
        lines += [f"## {title}", "", _markdown(inspect.getdoc(cls) or ""), ""]
        source = f"{cls.__module__.replace('.', '/')}.py"
        lines += [f"Defined in `{source}`" + (f", node `{node}`." if node else "."), ""]
        if not found:
            continue
        lines += [
            "| key | default | accepted | meaning | a change |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| `{key.name}` | `{key.default}` | {_cell(key.accepted)} | {_cell(key.meaning)} | "
            f"{key.kind.value} |"
            for key in found
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown(text: str) -> str:
    """Text of a comment or a docstring, its stars and brackets escaped outside of code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<>_\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def commands() -> str:
    """The page of all commands, with the help that each prints."""
    lines = [
        "# Commands",
        "",
        "Each command is `rlhf-jax COMMAND` where the package is installed, and "
        "`python -m experiments.COMMAND` in a clone. Exit statuses are those of all commands:",
        "",
        "```text",
        *(line[4:] for line in (inspect.getdoc(command) or "").splitlines() if line[:4] == "    "),
        "```",
        "",
        "```text",
        script.usage(),
        "```",
        "",
    ]
    for name in script.COMMANDS:
        module = importlib.import_module(f"rlhf_jax.cli.{name}")
        lines += [f"## {name}", "", _paragraphs(inspect.getdoc(module) or ""), ""]
        lines += ["```text", _help(name, module).rstrip(), "```", ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> str:
    """A docstring as Markdown; its indented parts are code already."""
    return "\n\n".join(
        part if part.startswith("    ") else _markdown(part) for part in text.split("\n\n")
    )


def _help(name: str, module: ModuleType) -> str:
    """The output of `rlhf-jax NAME --help`, 100 columns wide."""
    printed = io.StringIO()
    before = sys.argv
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit), _columns(100):
        sys.argv = [command.SCRIPT, "--help"]
        try:
            module.main()
        finally:
            sys.argv = before
    text = printed.getvalue()
    return re.sub(r"(Configs that come with the code), in .*:", r"\1:", text)


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """Context manager in which argparse takes the terminal to be so wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


PUBLIC = "the functions of `import rlhf_jax as rl`"


def api() -> dict[str, str]:
    """A page for the public functions, one for the core modules, and one for each package."""
    public = [
        f".. autofunction:: {getattr(rlhf_jax, name).__module__}.{name}"
        for name in vars(rlhf_jax)["__all__"]
        if name != "__version__"
    ]
    pages = {"api_rl": _page(f"rl: {PUBLIC}", public)}
    root = Path(rlhf_jax.__file__).parent
    core = [path.stem for path in sorted(root.glob("*.py")) if path.stem != "__init__"]
    pages["api_core"] = _page("Core modules", [line for name in core for line in _module(name)])
    for package in sorted(path.name for path in root.iterdir() if (path / "__init__.py").exists()):
        names = [
            name
            for _, name, is_package in pkgutil.walk_packages([str(root / package)], f"{package}.")
            if not is_package
        ]
        if package not in ("cli", "face"):
            lines = [line for name in [package, *names] for line in _module(name)]
            pages[f"api_{package}"] = _page(f"rlhf_jax.{package}", lines)
    return pages


def _module(name: str) -> list[str]:
    title = f"rlhf_jax.{name}"
    return [title, "-" * len(title), "", f".. automodule:: {title}", "   :members:", ""]


def _page(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "=" * len(title), "", *lines, ""])


def as_rst(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Turns a docstring, whose prose is plain, into reStructuredText: a hook of autodoc.

    Formulas and tables, which are indented or have columns, become literal blocks. Stars and bars
    of the prose are escaped.
    """
    del app, what, name, thing, options
    text: list[str] = []
    for block in "\n".join(lines).split("\n\n"):
        rows = block.split("\n")
        if _is_literal(rows):
            indented = [f"    {row}" for row in rows]
            text += ["::", "", *indented, ""]
        else:
            text += [*(_escaped(row) for row in rows), ""]
    lines[:] = text


SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:")


def _is_literal(rows: Sequence[str]) -> bool:
    """True for a formula or a table, and not for a section such as Args."""
    filled = [row for row in rows if row.strip()]
    if not filled or filled[0].strip() in SECTIONS:
        return False
    if all(row.startswith("    ") for row in filled):
        return True
    return sum(bool(re.search(r"\S {3,}\S", row)) for row in filled) >= 2


def _escaped(row: str) -> str:
    parts = row.split("`")
    parts[::2] = [
        re.sub(r"([*|])", r"\\\1", re.sub(r"(\w)_(?!\w)", r"\1\\_", p)) for p in parts[::2]
    ]
    return "`".join(parts)


def pages() -> dict[str, str]:
    """Every generated page by its file name."""
    shown = {"config_keys.md": config_keys(), "commands.md": commands()}
    return shown | {f"{name}.rst": text for name, text in api().items()}


def write(folder: Path) -> None:
    """Writes the pages; a page that is as it was is not touched, and one that nothing makes is
    removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for path in folder.iterdir():
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages to the folder that the arguments name. Returns the exit status: see
    `command.py`.
    """
    parser = argparse.ArgumentParser(description="Writes the generated pages of the reference.")
    parser.add_argument("--to", type=Path, default=Path("docs/reference/generated"))
    given = parser.parse_args(arguments)

    def body(place: command.Place) -> None:
        place.directory = given.to
        write(given.to)

    return command.call(body)


if __name__ == "__main__":
    command.start(main)
