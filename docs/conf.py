"""Sphinx's settings of the documentation site; `.ci/site` builds it, without network and with
warnings as errors.

Pages of the reference are generated at the beginning of each build, so that none is old.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import latex2mathml.converter  # noqa: E402
from docutils import nodes  # noqa: E402

import rlhf_jax  # noqa: E402
from experiments import reference  # noqa: E402

project = "rlhf_jax"
author = copyright = "The rlhf_jax authors"
version = release = rlhf_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "notebooks/ruff.toml"]
nb_execution_mode = "off"  # pages show the outputs that the notebooks hold
nb_mime_priority_overrides = [("html", "image/png", 0)]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages of results begin at the level that their script writes
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Returns", "Returns")]
add_module_names = False
toc_object_entries = False

html_theme = "furo"
html_title = "rlhf_jax"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # browsers draw it; MathJax would be fetched from elsewhere
html_domain_indices = False  # the reference lists the modules

TO_FILE = re.compile(r"\]\((\.\./[^)#\s]+)\)")
"""A link of a page to a file that may be outside of `docs/`."""


def outside_links(app, docname: str, source: list[str]) -> None:
    """Makes links to files of the repository that are no pages: a download of the file, and for a
    folder its name. A link to nothing is left to Sphinx, which warns.
    """
    folder = (DOCS / docname).parent

    def link(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not target.exists() or target.is_relative_to(DOCS):
            return match[0]
        return f"](<path:{match[1]}>)" if target.is_file() else "]{.folder}"

    source[0] = TO_FILE.sub(link, source[0])


def formula(translator, node: nodes.math) -> None:
    """Writes a formula in a line of text as MathML."""
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def display(translator, node: nodes.math_block) -> None:
    """Writes a formula of its own line as MathML. A wide one scrolls on a narrow page."""
    drawn = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{drawn}</div>\n')
    raise nodes.SkipNode


def setup(app) -> None:
    """Connects the hooks, and writes the generated pages."""
    app.add_html_math_renderer("mathml", (formula, None), (display, None))
    app.connect("source-read", outside_links)
    app.connect("autodoc-process-docstring", reference.as_rst, priority=100)
    reference.write(DOCS / "reference" / "generated")
