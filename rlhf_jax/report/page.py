"""Elements of a page that stands alone: no script, nothing fetched, light or dark as the reader's
system is.
"""

import html
import re
from collections.abc import Iterable, Sequence

from rlhf_jax.records.samples import printable
from rlhf_jax.report.plots.style import css_variables

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
h2 { font-size: 18px; margin: 36px 0 10px; } h3 { font-size: 15px; margin: 16px 0 8px; }
p { margin: 4px 0 10px; } .muted { color: var(--muted); } a { color: var(--accent); }
code { font: 0.92em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 12px 0; font-size: 14px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 14px 0; font-size: 14px; }
dl div { display: contents; } dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
dl.head { display: flex; flex-wrap: wrap; gap: 6px 28px; } .head div { display: block; } .head dt { font-size: 12.5px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 25px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card b { white-space: nowrap; }
.card b i, td i { font-style: normal; font-weight: 400; color: var(--muted); }
.card span { color: var(--muted); font-size: 13px; display: block; }
.notice { background: var(--card); border-left: 4px solid var(--bad); border-radius: 6px; padding: 10px 14px; }
.notice ul { margin: 4px 0 0; padding-left: 20px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)); gap: 12px;
  margin: 0 0 14px; align-items: stretch; }
figure { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; margin: 0 0 14px; padding: 10px;
  min-width: 0; } .pictures figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure.wide { overflow-x: auto; grid-column: 1 / -1; } figure.wide svg { min-width: 700px; max-width: 900px; }
@media (min-width: 1080px) { .pictures figure.wide { grid-column: span 2; } }
figcaption { color: var(--muted); font-size: 12.5px; line-height: 1.35; padding: 4px 6px 2px; position: sticky; left: 0; }
.hint { display: none; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px; border-top: 1px solid var(--edge); }
thead th { border-top: 0; color: var(--muted); font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: anywhere; min-width: 16ch; }
td small { display: block; color: var(--muted); font-size: 12px; line-height: 1.3; max-width: 62ch; }
.up { color: var(--good); } .down { color: var(--bad); }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
pre { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px; overflow: auto;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; max-height: 70vh; margin: 6px 0; }
@media (max-width: 640px) { main { padding: 18px 12px 48px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin: 0 0 6px; } dl.head { gap: 0 20px; }
  .hint { display: inline; } .cards { grid-template-columns: 1fr; } .card b { font-size: 22px; }
  table.stack thead { display: none; } table.stack, .stack tbody, .stack tr, .stack td { display: block; width: 100%; }
  .stack tr { border-top: 1px solid var(--edge); padding: 8px 0; } .stack td { border: 0; padding: 2px 12px; text-align: left;
  white-space: normal; }
  .stack td:empty { display: none; }
  .stack td::before { content: attr(data-label) " "; color: var(--muted); font-size: 12px; } }
"""


def text(value: object) -> str:
    """Anything as text of a page: control characters visible, markup escaped."""
    return html.escape(printable(str(value)))


def styles() -> str:
    """The style sheet, with the colours of pictures on a light and on a dark page."""
    return CSS.replace("LIGHT", css_variables(dark=False)).replace("DARK", css_variables(dark=True))


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{styles()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def card(name: str, value: str, note: str) -> str:
    """A headline figure; `value` is markup, the others text."""
    return (
        f'<div class="card"><span>{text(name)}</span><b>{value}</b><span>{text(note)}</span></div>'
    )


def drawing(svg: str, description: str, note: str = "", wide: bool = False) -> str:
    """A figure, with what a reader who cannot see it is told, and a line below it.

    A wide one scrolls on a narrow page.
    """
    hint = '<span class="hint"> Scroll sideways to see all of it.</span>' if wide else ""
    caption = f"<figcaption>{prose(note)}{hint}</figcaption>" if note or hint else ""
    attributes = (' class="wide"' if wide else "") + (f' title="{text(note)}"' if note else "")
    return (
        f'<figure role="group" aria-label="{text(description)}"{attributes}>{svg}{caption}</figure>'
    )


def pictures(drawings: Iterable[str], least: str) -> str:
    """Pictures in as many columns as the page has room for. Each has at least this width."""
    return f'<div class="pictures" style="--least: {least}">{"".join(drawings)}</div>'


def prose(sentence: str) -> str:
    """Text in which `words` between backticks are code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a backtick that is not closed is one
        return text(sentence)
    return "".join(
        f"<code>{text(part)}</code>" if index % 2 else text(part)
        for index, part in enumerate(parts)
    )


def facts(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    """A list of names and values; values are markup."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="{kind}">{items}</dl>' if items else ""


def contents(titles: Iterable[str]) -> str:
    """Links to the sections with these titles."""
    links = "".join(f'<a href="#{anchor(title)}">{text(title)}</a>' for title in titles)
    return f'<nav aria-label="Contents">{links}</nav>' if links else ""


def anchor(title: str) -> str:
    """The id of the section with a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str], stack: bool = False
) -> str:
    """Cells are markup; `kinds` has a class for each column: "text", "number" or "".

    With `stack`, a narrow page shows the cells of a row below one another, each with its column's
    name.
    """
    names = "".join(
        f'<th class="{kind}">{text(name)}</th>' for name, kind in zip(head, kinds, strict=True)
    )
    labels = [f' data-label="{text(name)}"' if stack else "" for name in head]

    def row_of(row: Sequence[str]) -> str:
        cells = zip(row, kinds, labels, strict=True)
        return (
            "<tr>"
            + "".join(f'<td class="{kind}"{label}>{cell}</td>' for cell, kind, label in cells)
            + "</tr>\n"
        )

    body = "".join(map(row_of, rows))
    kind = ' class="stack"' if stack else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{names}</tr></thead><tbody>\n{body}</tbody></table></div>'


def folded(summary: str, content: str, title: str = "") -> str:
    """Content that opens on a click, with the anchor of its title; nothing where there is no
    content.
    """
    identity = f' id="{anchor(title)}"' if title else ""
    return (
        f"<details{identity}><summary>{text(summary)}</summary>{content}</details>"
        if content
        else ""
    )


def notice(title: str, points: Iterable[str]) -> str:
    """A box of sentences that a reader should not miss; nothing where there is none."""
    items = "".join(f"<li>{prose(point)}</li>" for point in points)
    return f'<div class="notice"><b>{text(title)}</b><ul>{items}</ul></div>' if items else ""


def text_block(content: str) -> str:
    """Text with its own line breaks, in a fixed-width font."""
    return "<pre>" + "\n".join(text(line) for line in content.split("\n")) + "</pre>"
