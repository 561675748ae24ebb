"""Renders the templates of pages and cards, in which every value of an HTML page is escaped."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from rlhf_jax.records.samples import printable
from rlhf_jax.report.formats import number

TEMPLATES = Path(__file__).parent
MARKDOWN = ".md.jinja"


def render(template: str, /, **values: Any) -> str:
    """The text of a template of this folder.

    Args:
      template: its file, from this folder on.
      values: that the template names; it is an error to name another.
    """
    return environment().get_template(template).render(**values)


def page(template: str, /, **values: Any) -> str:
    """An HTML page: a template that extends `templates/layout.html.jinja`.

    Args:
      template: its file, from this folder on.
      values: that the template names beside the colours of pictures.
    """
    from rlhf_jax.report.plots import style  # matplotlib takes a second to import

    light, dark = (Markup(style.css_variables(dark)) for dark in (False, True))
    return render(template, light=light, dark=dark, **values)


@cache
def environment() -> jinja2.Environment:
    """Templates in which values are escaped where the file is one of HTML, and control characters
    are visible.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: not (name or "").endswith(MARKDOWN),
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"prose": prose, "number": number, "anchor": anchor, "bar": _escaped_bars}
    return made


def _visible(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def prose(sentence: str) -> Markup:
    """Markup of a sentence in which `words` between backticks are code."""
    parts = sentence.split("`")
    if len(parts) % 2 == 0:  # a backtick that is not closed is one
        return escape(printable(sentence))
    return Markup("").join(
        Markup("<code>{}</code>").format(printable(part)) if index % 2 else printable(part)
        for index, part in enumerate(parts)
    )


def anchor(title: str) -> str:
    """The id of the section with a title.

    >>> anchor("What it cost in KL")
    'what-it-cost-in-kl'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _escaped_bars(value: str) -> str:
    """Text of a cell of a table in Markdown: a bar would begin the next cell, and angle brackets an
    element of HTML.
    """
    return value.replace("|", r"\|").replace("<", r"\<")
