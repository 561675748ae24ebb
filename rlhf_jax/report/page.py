"""Elements of a page that stands alone: no script, nothing fetched, light or dark as the reader's system is."""

import html
from collections.abc import Iterable, Sequence

from rlhf_jax.observe.samples import printable
from rlhf_jax.report.style import css_variables

CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #22272e; --muted: #5f6875;
  --edge: #e3e6ea; --accent: #0072b2; --good: #00704f; --bad: #b34700; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e9ee; --muted: #9aa4b2;
  --edge: #2f3640; --accent: #4aa8e0; --good: #2fc79b; --bad: #f0803c; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 36px 0 10px; }
p { margin: 4px 0 10px; } .muted { color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 25px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card b { white-space: nowrap; }
.card b i, td i { font-style: normal; font-weight: 400; color: var(--muted); }
.card span { color: var(--muted); font-size: 13px; display: block; }
.notice { background: var(--card); border-left: 4px solid var(--bad); border-radius: 6px; padding: 10px 14px; }
.notice ul { margin: 4px 0 0; padding-left: 20px; }
figure { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; margin: 0 0 14px; padding: 12px; }
figure svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px; border-top: 1px solid var(--edge); }
thead th { border-top: 0; color: var(--muted); font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 16ch; }
.up { color: var(--good); } .down { color: var(--bad); }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
pre { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px; overflow: auto;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; max-height: 70vh; margin: 6px 0; }
"""


def text(value: object) -> str:
    """Anything as text of a page: control characters visible, markup escaped."""
    return html.escape(printable(str(value)))


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    css = CSS.replace("LIGHT", css_variables(dark=False)).replace("DARK", css_variables(dark=True))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def card(name: str, value: str, note: str) -> str:
    """A headline figure; `value` is markup, the others text."""
    return f'<div class="card"><span>{text(name)}</span><b>{value}</b><span>{text(note)}</span></div>'


def drawing(svg: str, description: str) -> str:
    """A figure, with what a reader who cannot see it is told."""
    return f'<figure role="img" aria-label="{text(description)}">{svg}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str]) -> str:
    """Cells are markup; `kinds` has a class for each column: "text", "number" or ""."""
    names = "".join(f'<th class="{kind}">{text(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>\n{body}</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """Content that opens on a click; nothing where there is no content."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>" if content else ""


def notice(title: str, points: Iterable[str]) -> str:
    items = "".join(f"<li>{text(point)}</li>" for point in points)
    return f'<div class="notice"><b>{text(title)}</b><ul>{items}</ul></div>' if items else ""


def text_block(content: str) -> str:
    """Text with its own line breaks, in a fixed-width font."""
    return "<pre>" + "\n".join(text(line) for line in content.split("\n")) + "</pre>"
