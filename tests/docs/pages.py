"""Reads a page's fenced blocks, and runs them as a reader would.

```console           lines after "$ " are commands (a last backslash goes on with the next line), what follows is
                     the output that they print; "..." stands for anything, and white space does not count
```python            runs; all of a page share their names
```{code-block} LANGUAGE       with a line ":caption: FILE" is written to that file
```bash              is not run: the paragraph before it says "Not run here" and why
any other            is no code
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.cli import command, main

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<ticks>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=ticks)\s*$", re.DOTALL | re.MULTILINE
)
CAPTION = re.compile(r"\A:caption: (.*)\n\n?")
ALIVE = re.compile(r"^(reading .*|at work.*|compiling program \d+.*)\n", re.MULTILINE)
"""Lines that say that a command goes on. They depend on the time, and pages leave them out."""
IN_A_SHELL = re.compile(r"[|><;&$]")
NOT_RUN = "not run here"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: what it is, its text, its first line, and the paragraph before it."""

    kind: str
    body: str
    line: int
    before: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip().rpartition("\n\n")[2]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["info"].strip(), match["body"], line, before))
    return found


def commands(body: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is printed below it."""
    found: list[tuple[str, str]] = []
    goes_on = False
    for line in body.splitlines():
        if goes_on:
            asked, said = found[-1]
            found[-1] = (f"{asked.removesuffix(chr(92))} {line.strip()}", said)
        elif line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            asked, said = found[-1]
            found[-1] = (asked, f"{said}{line}\n")
        goes_on = found[-1][0].endswith("\\") and not found[-1][1]
    return found


def run_page(text: str, folder: Path) -> None:
    """Runs the blocks of a page in a folder.

    Raises AssertionError that names the line of a block whose output is another one.
    """
    names: dict[str, object] = {"__name__": "page"}
    with contextlib.chdir(folder):
        for block in blocks(text):
            if block.kind == "console":
                for asked, said in commands(block.body):
                    _compare(block, asked, said, output(asked))
            elif block.kind == "python":
                exec(compile(block.body, f"line {block.line}", "exec"), names)
            elif block.kind.startswith("{code-block}") and (name := CAPTION.match(block.body)):
                path = Path(name[1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(CAPTION.sub("", block.body))


def _compare(block: Block, asked: str, said: str, printed: str) -> None:
    checker = doctest.OutputChecker()
    printed = ALIVE.sub("", printed)
    if not checker.check_output(said or "\n", printed or "\n", OPTIONS):
        raise AssertionError(
            f"block of line {block.line}: $ {asked}\n-- on the page:\n{said}\n-- printed:\n{printed}"
        )


def output(asked: str) -> str:
    """Runs a command, and returns the text that it prints on both streams.

    A command of ours runs in this process, so that programs are compiled once.
    """
    words = shlex.split(asked)
    if words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        words = [command.SCRIPT, words[2].partition(".")[2], *words[3:]]
    ours = words[0] == command.SCRIPT and len(words) > 1 and words[1] in main.COMMANDS
    if ours and not IN_A_SHELL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", asked)):
        return _in_process(words[1], words[2:])
    script = f'rlhf-jax() {{ {shlex.quote(sys.executable)} -m rlhf_jax.cli.main "$@"; }}\n{asked}'
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    return done.stdout


def _in_process(name: str, rest: list[str]) -> str:
    module = importlib.import_module(f"rlhf_jax.cli.{name}")
    printed = io.StringIO()
    with (
        _arguments([command.SCRIPT, *rest]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    return printed.getvalue()


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Context manager in which the process has these arguments; modules that a page's own files
    were loaded as are forgotten at its end.
    """
    before, modules = sys.argv, set(sys.modules)
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = before
        for name in set(sys.modules) - modules:
            path = getattr(sys.modules[name], "__file__", None)
            if path and Path(path).is_relative_to(Path.cwd()):
                del sys.modules[name]
