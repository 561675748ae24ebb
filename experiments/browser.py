"""Pages in headless Chromium: opens one at a width, finds its faults, and takes its picture.

Chromium and its driver are Debian's packages `chromium` and `chromium-driver`. Every host name fails
to resolve, so that a page which fetches something from elsewhere has a fault.
"""

import base64
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.extras import needed

PROGRAMS = ("chromium", "chromedriver")
DESKTOP, PHONE = 1280, 390
"""Widths of pages in CSS pixels."""
HEIGHT = 1600
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # a sandbox needs rights that root in a container lacks; the pages are our own
    "--disable-dev-shm-usage",  # containers have 64 MB of shared memory
    "--disable-gpu",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
LOADED = """
const done = arguments[0];
const pictures = [...document.images].map(picture => {
  picture.loading = "eager";
  return picture.decode().catch(() => null);
});
Promise.all([document.fonts.ready, ...pictures]).then(() => done(true));
"""
UNFOLD = "document.querySelectorAll('details').forEach(element => { element.open = true; });"
FAULTS = """
const found = [], page = document.scrollingElement;
const name = element => {
  const label = element.id || element.getAttribute("src") || element.className;
  return `<${element.tagName.toLowerCase()}> ${label || element.textContent.trim()}`.slice(0, 100);
};
const is_drawn = element => {
  const box = element.getBoundingClientRect();
  return box.width >= 1 && box.height >= 1;
};
const beyond = page.scrollWidth - page.clientWidth;
if (beyond > 0) {
  const wide = [...document.body.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > page.clientWidth + 1);
  found.push(`scrolls sideways by ${beyond} pixels: ${wide.slice(-3).map(name).join("; ")}`);
}
for (const picture of document.images)
  if (!picture.complete || !picture.naturalWidth || !is_drawn(picture))
    found.push(`a picture is missing: ${name(picture)}`);
for (const figure of document.querySelectorAll("figure"))
  if (![...figure.querySelectorAll("svg, img")].some(is_drawn))
    found.push(`a figure without a picture: ${figure.getAttribute("aria-label") || name(figure)}`);
for (const table of document.querySelectorAll("table"))
  if (!is_drawn(table) || !table.querySelector("td") || !table.textContent.trim())
    found.push(`a table is empty or not drawn: ${name(table)}`);
const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
const linked = [...document.querySelectorAll("script, link[rel=stylesheet], img, iframe")]
  .map(element => element.src || element.href || "");
for (const url of new Set([...loaded, ...linked]))
  if (url && !/^(file|data|about):/.test(url)) found.push(`fetches ${url}`);
return found;
"""


def missing() -> list[str]:
    """Returns the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Browser:
    """One window of Chromium."""

    def __init__(self, driver: Any) -> None:
        """Wraps the driver of a window, selenium's `webdriver.Chrome`."""
        self.driver = driver

    def open(self, page: Path, width: int = DESKTOP, unfold: bool = True) -> None:
        """Opens a page of this machine and waits for its pictures and fonts.

        Args:
          page: the HTML file.
          width: of the window, in CSS pixels. Up to `PHONE` it is a touch screen.
          unfold: opens everything that a reader can unfold.
        """
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width <= PHONE},
        )
        self.driver.get_log("browser")  # what an earlier page printed is dropped
        self.driver.get(page.resolve().as_uri())
        if unfold:
            self.driver.execute_script(UNFOLD)
        self.driver.execute_async_script(LOADED)

    def faults(self) -> list[str]:
        """Returns a sentence for every fault of the open page.

        These are errors of its console, sideways scrolling, pictures and tables that are not drawn,
        and scripts, styles or pictures from elsewhere.
        """
        lines = [str(line["message"]) for line in self.driver.get_log("browser") if _is_error(line)]
        return [f"the console says: {line}" for line in lines] + self.driver.execute_script(FAULTS)

    def text(self) -> str:
        """Returns the text that a reader sees."""
        return self.driver.execute_script("return document.body.innerText")

    def labels(self) -> list[str]:
        """Returns the descriptions of the figures that are drawn."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('figure[aria-label]')]"
            ".filter(figure => [...figure.querySelectorAll('svg')]"
            ".some(svg => svg.getBoundingClientRect().height >= 1))"
            ".map(figure => figure.getAttribute('aria-label'))"
        )

    def screenshot(self, whole: bool = False) -> bytes:
        """Returns a PNG of the first `HEIGHT` pixels, or of the whole page."""
        taken = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole}
        )
        return base64.b64decode(taken["data"])


def _is_error(line: dict[str, object]) -> bool:
    return line["level"] == "SEVERE"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Context manager with a window of headless Chromium.

    Raises Refusal where selenium is not installed.
    """
    with needed("browser", "Chromium"):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location, driver = (shutil.which(program) or program for program in PROGRAMS)
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(window)
    finally:
        window.quit()
