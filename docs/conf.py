"""Builds the documentation site: `make docs`."""

import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import ember_optax

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
REPOSITORY = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]

project = "ember_optax"
author = PYPROJECT["project"]["authors"][0]["name"]
release = version = ember_optax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True
exclude_patterns = ["_build"]
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_theme = "sphinx_book_theme"
html_title = "ember_optax"
html_copy_source = False
html_use_index = html_domain_indices = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "use_download_button": False,
    "navbar_persistent": [],  # a second field to search in
    "show_toc_level": 2,
}

# Headings can be linked to as on GitHub.
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 1200
nb_execution_raise_on_error = True

# Docstrings are of Google's kind, with code between single backticks. Their prose gives
# the types, which signatures would spell out as unions of a page.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
maximum_signature_line_length = 72
add_module_names = False
napoleon_use_rtype = False


# Pages that are made of files outside of this folder.
PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
}


class LinkOutside(SphinxTransform):
    """Sends links to files of the repository to their page, or to the repository."""

    default_priority = 100

    def apply(self, **kwargs: Any) -> None:
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for node in list(self.document.findall(kind)):
                path = node.get("reftype") == "myst" and file_of(node)
                if path and not path.is_relative_to(ROOT / "docs"):
                    node.replace_self(self.link(path.relative_to(ROOT), node.children))

    def link(self, path: Path, children: list[nodes.Node]) -> nodes.Element:
        if page := PAGES.get(str(path)):
            return addnodes.pending_xref(
                "",
                *children,
                refdomain="std",
                reftype="doc",
                reftarget=f"/{page}",
                refdoc=self.env.docname,
                refexplicit=True,
            )
        uri = f"{REPOSITORY}/blob/main/{path}"
        return nodes.reference("", "", *children, refuri=uri)


def file_of(link: nodes.Element) -> Path | None:
    """Returns the file that a link of a page leads to."""
    target = link["reftarget"].partition("#")[0]
    if link["refdomain"] == "doc":
        target += ".md"  # MyST takes every such file for a page
    # README.md lies in the root, and is a part of a page here.
    paths = [(base / target).resolve() for base in (ROOT / "docs", ROOT)]
    return next((path for path in paths if path.exists()), None)


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Writes MathML, which browsers draw without a script or a network."""
    text = node.astext()
    if "\\\\" in text:
        text = rf"\begin{{align*}}{text}\end{{align*}}"
    if isinstance(node, nodes.math_block):
        mathml = f'<div class="formula">{convert(text, display="block")}</div>'
    else:
        mathml = convert(text)
    translator.body.append(mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_transform(LinkOutside)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))


html_math_renderer = "mathml"
