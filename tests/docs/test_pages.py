"""Pages of the site run as they are printed, begin and end as guides do, and link to what exists."""

import re
import shutil
from pathlib import Path

import jax
import pytest

from tests.docs import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "generated", "results", "notebooks"} & {*path.relative_to(DOCS).parts}
)
GUIDES = [path for path in PAGES if path.parent.name == "guides" and path.name != "index.md"]
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted(DOCS.glob("results/*.md"))]
QUICKSTART = DOCS / "start" / "quickstart.md"
LIBRARY = DOCS / "guides" / "library.md"
"""`tests/face/test_names.py` runs it, with fewer rounds."""
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def runs(path: Path) -> bool:
    """True for a page that has a block to run."""
    kinds = {block.kind for block in pages.blocks(path.read_text())}
    return path not in (LIBRARY, QUICKSTART) and bool(kinds & {"console", "python"})


@pytest.fixture(scope="module")
def _processes():
    """Processes that a page begins find the package, and as many devices as this one has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_NUM_CPU_DEVICES", str(len(jax.devices())))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _processes, with_pictures) -> Path:
    """A folder with the run that pages begin with: the page of the quickstart makes it, and its
    report has pictures.
    """
    folder = tmp_path_factory.mktemp("pages")
    with with_pictures():
        pages.run_page(QUICKSTART.read_text(), folder)
    return folder


def test_the_page_of_the_quickstart_runs_as_it_is_printed(finished: Path):
    assert (finished / "runs" / "tiny" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("path", [path for path in PAGES if runs(path)], ids=name)
def test_a_page_runs_as_it_is_printed(path: Path, finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    pages.run_page(path.read_text(), tmp_path)


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_a_guide_begins_with_its_question_and_ends_with_a_command(path: Path):
    text = path.read_text()
    first = text.split("\n\n")[1]
    assert first.rstrip("*").endswith("?"), f"the first paragraph is {first!r}"
    if path != LIBRARY:
        last = pages.blocks(text)[-1]
        assert last.kind == "console"
        assert all(said for _, said in pages.commands(last.body)), "a command without its output"


def test_the_front_page_is_short():
    """A sentence there is replaced by another one, and none is added."""
    assert len((ROOT / "README.md").read_text().split()) <= 1100


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_a_command_that_is_not_run_says_so(path: Path):
    for block in pages.blocks(path.read_text()):
        if block.kind in ("bash", "sh", "shell"):
            assert pages.NOT_RUN in block.before.lower(), f"line {block.line} of {name(path)}"


@pytest.mark.parametrize("path", LINKED, ids=name)
def test_links_lead_to_files_and_headings_that_exist(path: Path):
    text = pages.FENCE.sub("", path.read_text())
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        generated = DOCS / "reference" / "generated"
        assert there.exists() or there.parent == generated, f"{name(path)} links to {target}"
        if anchor and there.suffix == ".md" and there.exists():
            assert anchor in anchors(there.read_text()), f"{name(path)} links to {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", pages.FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_another_output_is_noticed(tmp_path: Path):
    page = "```console\n$ echo one && \\\n  echo two\none\n...\n```\n"
    pages.run_page(page, tmp_path)
    with pytest.raises(AssertionError, match=r"block of line 1: \$ echo one"):
        pages.run_page(page.replace("\none\n", "\nthree\n"), tmp_path)


def test_python_shares_its_names_and_a_captioned_block_becomes_a_file(tmp_path: Path):
    page = (
        "```{code-block} python\n:caption: mine/a.py\n\nx = 1\n```\n\n```python\ny = 2\n```\n\n"
        "```python\nassert (open('mine/a.py').read(), y) == ('x = 1\\n', 2)\n```\n"
    )
    pages.run_page(page, tmp_path)
    with pytest.raises(AssertionError):
        pages.run_page(page.replace("y = 2", "y = 3"), tmp_path)
