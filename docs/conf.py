"""Sphinx configuration. The page objectives.md is written by generate_objectives.py and committed."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

import dgpo

LONG = re.compile(r"[\w./=:]{18,}")
AFTER = re.compile(r"([_./=:])(?=\w)")

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
html_static_path = ["_static"]
html_css_files = ["tables.css"]


def absolute_values(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """|A| or |A·w| in a docstring's prose is an absolute value, not a substitution of reStructuredText."""
    lines[:] = [line if line.startswith("    ") else re.sub(r"\|(A(?:·w)?)\|", r"\|\1\|", line) for line in lines]


def breakable(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Long names in tables may break after _ . / = and :, so that they do not make the table wider than the page."""

    def mark(match: re.Match[str]) -> str:
        return re.sub(r">[^<]+<", lambda text: LONG.sub(lambda word: AFTER.sub(r"\1<wbr>", word[0]), text[0]), match[0])

    if "body" in context:
        context["body"] = re.sub(r"<table.*?</table>", mark, context["body"], flags=re.DOTALL)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", absolute_values)
    app.connect("html-page-context", breakable)
