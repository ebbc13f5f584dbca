"""Sphinx configuration; also writes docs/_generated/objectives.md from the registry."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

import dgpo
from dgpo.objectives import OBJECTIVES, table

project = "dgpo"
author = "The dgpo authors"
copyright = author
version = release = dgpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
html_theme = "furo"
html_title = f"dgpo {release}"
html_copy_source = False

METHOD = """
### `{name}`

```{{eval-rst}}
.. autoclass:: {module}.{cls}
```
"""


def write_objectives(app: Sphinx) -> None:
    """docs/_generated/objectives.md: the table of methods, then the docstring of each."""
    parts = [table.as_markdown(), "\n## Every method\n"]
    for name, cls in OBJECTIVES.items():
        parts.append(METHOD.format(name=name, module=cls.__module__, cls=cls.__name__))
    target = Path(app.srcdir) / "_generated" / "objectives.md"
    target.parent.mkdir(exist_ok=True)
    text = "\n".join(parts)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_objectives)
