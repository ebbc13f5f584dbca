"""The page of a comparison: learning curves with one colour per method and a band over seeds, and the tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dgpo.comparison.reading import read_summary
from dgpo.comparison.summary import Summary
from dgpo.comparison.tables import BASELINE, JSON, grids, headline, limits
from dgpo.evaluation.tables import Grid
from dgpo.files import read_json, write_text_atomic
from dgpo.report import sections
from dgpo.report.grouping import flattened
from dgpo.report.markup import Markup, escaped, joined, table, tag
from dgpo.report.page import rendered

SECTIONS = {"overview": "Overview", "curves": "Curves", "scores": "Scores", "config": "What ran"}
"""Id of a section -> its name in the navigation."""

SCRIPTS = ("base", "comparison", "frame")
"""Parts of the page's script, in execution order."""


def is_comparison(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a comparison that was summarised, or the file of its summary."""
    if Path(path).name == JSON and Path(path).is_file():
        return True
    try:
        document = read_json(Path(path) / JSON)
    except OSError:
        return False
    except ValueError:  # damaged
        return True
    # `dgpo demo` and others write a file of this name, too
    return isinstance(document, dict) and "schema" in document


def write_comparison_report(comparison: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison as one HTML file, atomically.

    Args:
        comparison: its `summary.json`, or the folder of it.
        out: the file.

    Raises:
        ValueError: as `read_summary`.
        ModuleNotFoundError: if plotly is not installed.
        OSError: if the file cannot be written.
    """
    return write_text_atomic(out, comparison_page(read_summary(comparison)))


def comparison_page(summary: Summary) -> str:
    """Render a summary.

    Raises:
        ModuleNotFoundError: if plotly is not installed.
    """
    arms = _arms(summary)
    parts = {
        "title": escaped("dgpo compare: " + ", ".join(arms)),
        "header": _header(summary),
        "tables": joined(tag("div", tag("h3", grid.title), _table(grid, arms)) for grid in grids(summary)),
        "about": _about(summary),
    }
    return rendered("comparison.html", SECTIONS, SCRIPTS, parts, _data(summary, arms))


def _arms(summary: Summary) -> list[str]:
    """All arms; the place of one is its colour. One without a complete run on all tasks may have curves and no row."""
    return list(dict.fromkeys([*(m.arm for m in summary.methods), *(curve.arm for curve in summary.curves)]))


def _header(summary: Summary) -> Markup:
    listed = limits(summary)
    warned = [
        tag("h2", "What limits the figures"),
        tag("ul", *(tag("li", line) for line in listed), id="limits"),
    ]
    return joined([tag("p", headline(summary)), *(warned if listed else [])])


def _table(grid: Grid, arms: list[str]) -> Markup:
    rows: list[list[object]] = []
    for name, *cells in grid.rows:
        arm = name.removesuffix(BASELINE)
        swatch = tag("span", class_=f"swatch method-{arms.index(arm) % 8}", aria_hidden="true")
        rows.append([tag("span", swatch, name, class_="run"), *cells])
    body = table("", grid.columns, rows, numeric=range(1, len(grid.columns)), name=grid.title)
    return joined([body, tag("p", "; ".join(grid.caption) + ".", class_="aside")])


def _about(summary: Summary) -> Markup:
    if not summary.about:
        return sections.empty("The summary does not say what ran.")
    found = sections.settings([flattened(summary.about)], [Markup("value")])
    return tag("details", tag("summary", "Every setting, the versions and the hardware"), found)


def _data(summary: Summary, arms: list[str]) -> dict[str, Any]:
    return {
        "methods": arms,
        "baseline": summary.baseline,
        "confidence": summary.confidence,
        "curves": [
            {
                "method": arms.index(curve.arm),
                "task": curve.task,
                "steps": curve.steps,
                "mean": curve.mean,
                "low": curve.low,
                "high": curve.high,
                "runs": list(curve.runs.items()),
            }
            for curve in summary.curves
        ],
        "differences": [
            {
                "method": arms.index(method.arm),
                "value": method.against.final.value,
                "low": method.against.final.low,
                "high": method.against.final.high,
            }
            for method in summary.methods
            if method.against is not None
        ],
    }
