"""Takes the screenshots of `docs/screenshots/` at desktop and phone width.

    .ci/site
    python -m experiments.screenshots runs/quickstart runs/lag_8

The first run's report and the comparison of all are built anew. Prints the faults of the pages, and
ends with status 1 where there is one. Needs `pip install -e '.[browser]'`, Chromium and its driver.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import browser
from rlhf_jax.cli import command
from rlhf_jax.extras import needed
from rlhf_jax.refusal import MissingInput, Refusal

DOCS = Path(__file__).parents[1] / "docs"
OF_SITE = {
    "front": "index.html",
    "guide": "guides/your_reward.html",
    "result": "results/offpolicyness.html",
}
COLORS = 256
"""Of a picture's palette: pages are flat, and a photograph's colours would be several times the size."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pictures. Returns the exit status: see `rlhf_jax/cli/command.py`."""
    parser = argparse.ArgumentParser(description="Takes the screenshots of the documentation.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two run directories or more")
    parser.add_argument("--site", type=Path, default=DOCS / "_build" / "html")
    parser.add_argument("--to", type=Path, default=DOCS / "screenshots")
    given = parser.parse_args(arguments)
    faults: list[str] = []

    def body(place: command.Place) -> None:
        place.directory = given.to
        if browser.missing():
            raise Refusal(f"{' and '.join(browser.missing())}: not installed")
        pages = {name: given.site / page for name, page in OF_SITE.items()}
        if absent := [str(page) for page in pages.values() if not page.exists()]:
            raise MissingInput(f"{absent[0]} does not exist; .ci/site builds it")
        with tempfile.TemporaryDirectory() as folder:
            faults.extend(take(pages | of_runs(given.runs, Path(folder)), given.to))

    return command.call(body) or int(bool(faults))


def of_runs(runs: Sequence[str], folder: Path) -> dict[str, Path]:
    """Builds the report of the first run, and in a folder the comparison of all; their paths."""
    from rlhf_jax.report import html
    from rlhf_jax.report.comparison import html as comparison

    compared = comparison.write(runs, folder / comparison.FILE)
    return {"report": html.write_report(runs[0]), "comparison": compared}


def take(pages: Mapping[str, Path], to: Path) -> list[str]:
    """Writes `<name>-<width>.png` of every page and both widths; returns and prints their faults."""
    found = []
    to.mkdir(parents=True, exist_ok=True)
    with browser.chromium() as window:
        for name, page in pages.items():
            for width in (browser.DESKTOP, browser.PHONE):
                window.open(page, width, unfold=False)
                path = to / f"{name}-{width}.png"
                path.write_bytes(reduced(window.screenshot()))
                print(path)
                found += [f"{path.stem}: {fault}" for fault in window.faults()]
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return found


def reduced(png: bytes) -> bytes:
    """The picture with a palette."""
    with needed("browser", "a screenshot"):
        from PIL import Image
    written = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # a palette by coverage keeps the colours of thin lines, which one by frequency makes grey
    picture = picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(written, "png", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    command.start(main)
