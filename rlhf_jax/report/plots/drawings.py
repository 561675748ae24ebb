"""Pictures as `<svg>` elements of a page."""

from collections.abc import Iterable

from markupsafe import Markup

from rlhf_jax.report.elements import Drawing, Drawings
from rlhf_jax.report.plots import style
from rlhf_jax.report.plots.style import Picture


def drawings(pictures: Iterable[Picture], name: str, least: str) -> Drawings:
    """Draws pictures for a page.

    Args:
      pictures: in order.
      name: of all of them, from which the ids in the page are made.
      least: the width that each has at least, in the units of CSS.
    """
    drawn = [
        Drawing(
            _svg(picture, f"{name} {index}"),
            picture.name,
            picture.note,
            picture.wide,
            _svg(picture.narrow, f"{name} {index} narrow") if picture.narrow else None,
        )
        for index, picture in enumerate(pictures)
    ]
    return Drawings(drawn, least)


def _svg(picture: Picture, name: str) -> Markup:
    return Markup(style.svg(style.sheet([picture]), name))
