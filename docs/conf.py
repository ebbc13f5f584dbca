"""Sphinx configuration. The page objectives.md is written by generate_objectives.py and committed."""

from __future__ import annotations

from sphinx.application import Sphinx

import dgpo

project = "dgpo"
author = "The dgpo authors"
copyright = author
version = release = dgpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "objectives_head.md"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
html_theme = "furo"
html_title = f"dgpo {release}"
html_copy_source = False


def absolute_values(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """|A| in a docstring's prose is an absolute value, not a substitution of reStructuredText."""
    lines[:] = [line if line.startswith("    ") else line.replace("|A|", r"\|A\|") for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", absolute_values)
