"""Pages as Chromium shows them: no error of the console, no sideways scrolling on a phone, every
picture and table drawn, nothing fetched from elsewhere, and a script in a completion is text.

The site is opened where `RLHF_JAX_SITE` names the folder that it was built into, as `.ci/browser`
does; a Chromium that is missing is then an error.
"""

import base64
import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import browser
from experiments.browser import DESKTOP, PHONE, Browser
from rlhf_jax.report import html, read
from rlhf_jax.report.comparison import html as comparison
from tests.report.compared import two_groups
from tests.report.conftest import make_run

pytestmark = pytest.mark.pictures
SITE = os.environ.get("RLHF_JAX_SITE")
SCRIPT = (
    "<script>document.title = 'obeyed'</script><img src=x onerror=\"document.title = 'obeyed'\">"
)
WIDTHS = pytest.mark.parametrize("width", [DESKTOP, PHONE])
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

if not SITE and browser.missing():
    pytest.skip(f"{' and '.join(browser.missing())}: not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A window; the tests are skipped, with the reason, where Chromium is there and cannot start."""
    from selenium.common.exceptions import WebDriverException

    with contextlib.ExitStack() as stack:
        try:
            window = stack.enter_context(browser.chromium())
        except WebDriverException as error:
            pytest.skip(f"Chromium does not start here: {error.msg}")
        yield window


def with_script(directory: Path) -> Path:
    """A run, one of whose completions holds a script."""
    path = directory / "samples.jsonl"
    words = json.dumps(SCRIPT)[1:-1]
    path.write_text(path.read_text().replace("moving joy", f"moving joy {words}"))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = with_script(make_run(tmp_path_factory.mktemp("runs") / "quickstart"))
    html.write_report(directory)
    return directory


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [with_script(path) for path in two_groups(tmp_path_factory.mktemp("compared"))]
    return comparison.write([str(path) for path in runs], runs[0].parent / "comparison.html")


def assert_script_is_text(chromium: Browser) -> None:
    assert f"a quiet, moving joy {SCRIPT}" in chromium.text()
    assert chromium.driver.title != "obeyed"


@WIDTHS
def test_a_report(chromium: Browser, run: Path, width: int) -> None:
    chromium.open(run / "report.html", width)
    assert not chromium.faults()
    pictures = [picture for drawn in html.draw(read.read_run(run)).values() for picture in drawn]
    assert len(pictures) > 10
    assert sorted(chromium.labels()) == sorted(picture.name for picture in pictures)
    text = chromium.text()
    for title in ("Completions before and after", "Evaluations", "Resolved config"):
        assert title in text
    assert_script_is_text(chromium)


@WIDTHS
def test_a_comparison(chromium: Browser, compared: Path, width: int) -> None:
    chromium.open(compared, width)
    assert not chromium.faults()
    labels = chromium.labels()
    for across in ("updates", "seconds", "kl"):
        assert f"Gold score, against {across}" in labels
    text = chromium.text()
    for title in ("Final figures", "What differs", "algorithm.beta", "a loud bore"):
        assert title in text
    assert_script_is_text(chromium)


@pytest.mark.skipif(not SITE, reason="RLHF_JAX_SITE names no site: .ci/browser opens its pages")
@WIDTHS
def test_every_page_of_the_site(chromium: Browser, width: int) -> None:
    site = Path(SITE or "")
    pages = [page for page in site.rglob("*.html") if page.relative_to(site).parts[0] != "_static"]
    assert {site / "index.html", site / "start" / "quickstart.html"} <= {*pages}
    found = {}
    for page in sorted(pages):
        chromium.open(page, width)
        if faults := chromium.faults():
            found[str(page.relative_to(site))] = faults
    assert not found


@pytest.fixture
def faults(chromium: Browser, tmp_path: Path):
    """Function that returns the faults of a page with this body on a phone."""

    def of(body: str) -> list[str]:
        page = tmp_path / "page.html"
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        page.write_text(f"<!doctype html><html><head>{head}</head><body>{body}</body></html>")
        chromium.open(page, PHONE)
        return chromium.faults()

    return of


def test_each_fault_is_found(faults, tmp_path: Path) -> None:
    (tmp_path / "pixel.png").write_bytes(base64.b64decode(PIXEL))
    fine = (
        '<p>words</p><img src="pixel.png"><table><tr><td>1</td></tr></table>'
        '<figure><svg width="9" height="9"><path d="M0 0h9"/></svg></figure>'
        "<details><summary>more</summary><table><tr><td>2</td></tr></table></details>"
        '<div style="overflow-x: auto"><div style="width: 700px">scrolls inside</div></div>'
    )
    assert not faults(fine)
    for body, fault in {
        "<script>throw new Error('a bug')</script>": "the console says: .*a bug",
        "<script>console.error('a bug')</script>": "the console says: .*a bug",
        '<p id="wide" style="width: 400px">wide</p>': "scrolls sideways by .* <p> wide",
        '<img src="nowhere.png">': "a picture is missing: <img> nowhere.png",
        '<img src="pixel.png" style="display: none">': "a picture is missing: <img> pixel.png",
        '<figure aria-label="KL"></figure>': "a figure without a picture: KL",
        '<table id="none"></table>': "a table is empty or not drawn: <table> none",
        '<div hidden><table id="gone"><tr><td>1</td></tr></table></div>': "not drawn: <table> gone",
        '<script src="https://example.org/a.js"></script>': "fetches https://example.org/a.js",
        '<style>@import "http://example.org/a.css";</style>': "fetches http://example.org/a.css",
    }.items():
        found = faults(fine + body)
        assert any(re.search(fault, line) for line in found), f"{body}: {found}"
