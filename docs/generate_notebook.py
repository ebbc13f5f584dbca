"""Run docs/tutorials/one_gradient.md, and write what it prints, its figures, and the notebook of the same content.

    python docs/generate_notebook.py            write them
    python docs/generate_notebook.py --check    exit 1 if one of them is not what would be written

The page is the source. A block of Python becomes a cell of code; a block of text right after it is what it prints, and
an image right after it is the figure that it draws.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "figures"))

import drawing  # noqa: E402

PAGE = DOCS / "tutorials" / "one_gradient.md"
COMMAND = "python docs/generate_notebook.py"
PART = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?(?:\n!\[(?P<title>.*?)\]\((?P<figure>.*?)\)\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Part:
    """A piece of Markdown, or a block of code with what it gave."""

    text: str
    is_code: bool = False
    printed: str | None = None
    title: str | None = None
    figure: str | None = None
    drawn: str = ""

    def on_the_page(self) -> str:
        """As it stands in the page."""
        if not self.is_code:
            return self.text
        text = f"```python\n{self.text}```\n"
        text += f"\n```text\n{self.printed}```\n" if self.printed else ""
        return text + (f"\n![{self.title}]({self.figure})\n" if self.figure else "")

    def as_cell(self, number: int) -> dict[str, Any]:
        """As a cell of a notebook."""
        source = self.text.strip("\n").splitlines(keepends=True)
        cell: dict[str, Any] = {"cell_type": "markdown", "id": f"part-{number}", "metadata": {}, "source": source}
        if not self.is_code:
            return cell
        outputs: list[dict[str, Any]] = []
        if self.printed:
            outputs.append({"name": "stdout", "output_type": "stream", "text": self.printed.splitlines(keepends=True)})
        if self.drawn:
            data = {"image/svg+xml": self.drawn.splitlines(keepends=True), "text/plain": [self.title]}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        return cell | {"cell_type": "code", "execution_count": None, "outputs": outputs}


def parts(page: str) -> list[Part]:
    """The page in pieces, in order."""
    found, at = [], 0
    for match in PART.finditer(page):
        found += [
            Part(page[at : match.start()]),
            Part(match["code"], True, match["printed"], match["title"], match["figure"]),
        ]
        at = match.end()
    return [part for part in [*found, Part(page[at:])] if part.text]


def run(found: list[Part]) -> None:
    """Execute the code in order, and put what it prints and draws into the parts.

    Raises:
        ValueError: a block draws a figure that the page does not show, or the other way round.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    matplotlib.use("Agg")
    with matplotlib.style.context(["default", drawing.STYLE]):
        for part in filter(lambda part: part.is_code, found):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(part.text, str(PAGE), "exec"), namespace)
            part.printed = printed.getvalue()
            if len(plt.get_fignums()) != (part.figure is not None):
                plt.close("all")
                raise ValueError(f"{PAGE.name}: an image has to follow each block that draws a figure, and no other")
            if part.figure is not None:
                stream = io.StringIO()
                plt.gcf().savefig(stream, format="svg", metadata={"Date": None})
                part.drawn = stream.getvalue()
                plt.close("all")


def notebook(found: list[Part]) -> str:
    """The notebook as JSON."""
    document = {
        "cells": [part.as_cell(number) for number, part in enumerate(found)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def written() -> dict[Path, bytes]:
    """File -> content: the page, its figures and the notebook."""
    found = parts(PAGE.read_text(encoding="utf-8"))
    run(found)
    figures = {(PAGE.parent / part.figure).resolve(): part.drawn.encode() for part in found if part.figure}
    page = "".join(part.on_the_page() for part in found)
    return {PAGE: page.encode(), PAGE.with_suffix(".ipynb"): notebook(found).encode(), **figures}


def main(argv: list[str] | None = None) -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    return drawing.write(written(), check=parser.parse_args(argv).check, command=COMMAND)


if __name__ == "__main__":
    sys.exit(main())
