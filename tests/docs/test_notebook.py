"""The notebook is its page: the same text and code, with the outputs that the code gives."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from types import ModuleType

import pytest


def test_it_is_the_page(notebook_script: ModuleType) -> None:
    """Without running anything: text, code, and the outputs that stand in the page and in its figures."""
    page = notebook_script.PAGE
    parts = notebook_script.parts(page.read_text(encoding="utf-8"))
    assert "".join(part.on_the_page() for part in parts) == page.read_text(encoding="utf-8")
    for part in parts:
        if part.figure:
            part.drawn = (page.parent / part.figure).read_text(encoding="utf-8")
    committed = page.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert notebook_script.notebook(parts) == committed, f"run: {notebook_script.COMMAND}"


def test_it_runs_and_gives_its_outputs(notebook_script: ModuleType, root: Path) -> None:
    page = notebook_script.PAGE
    cells = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    parts = [
        notebook_script.Part("".join(cell["source"]) + "\n", cell["cell_type"] == "code", figure=figure(cell))
        for cell in cells
    ]
    notebook_script.run(parts)
    pinned = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    same = importlib.metadata.version("matplotlib") == pinned[1]  # another one draws other bytes
    count = 0
    for cell, part in zip(cells, parts, strict=True):
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                assert part.printed == "".join(output["text"])
            else:
                assert part.drawn.startswith("<?xml")
                assert not same or part.drawn == "".join(output["data"]["image/svg+xml"])
            count += 1
    assert count == 6, "four cells print something, two draw"


def figure(cell: dict) -> str | None:
    """A name for the figure that a cell is to draw."""
    return "drawn" if any(output["output_type"] == "display_data" for output in cell.get("outputs", [])) else None


def test_a_figure_that_is_not_shown_is_an_error(notebook_script: ModuleType) -> None:
    draws = "import matplotlib.pyplot as plt\nplt.figure()\n"
    with pytest.raises(ValueError, match="an image has to follow"):
        notebook_script.run([notebook_script.Part(draws, is_code=True)])
    with pytest.raises(ValueError, match="an image has to follow"):
        notebook_script.run([notebook_script.Part("x = 1\n", is_code=True, figure="some.svg")])
