"""Results of `dgpo eval`, as rows of the page."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgpo.runs.results import read_results, results_file, summary_of


def readable(paths: Sequence[str | os.PathLike[str]]) -> dict[Path, list[dict[str, Any]]]:
    """Folder -> the `rows` of its results; damaged results are left out, with a warning that names them.

    Raises:
        ValueError: if a file does not exist.
    """
    found = {}
    for path in paths:
        file = results_file(path)
        try:
            found[file.parent] = rows(path)
        except ValueError as error:
            if not file.is_file():
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One row per benchmark and estimate: fractions with the ends of their 95 % interval.

    Raises:
        ValueError: as `read_results`; or if an entry that the page shows is damaged.
    """
    document = read_results(path)
    found = []
    for benchmark, about in document["benchmarks"].items():
        problems, estimates = summary_of(about, f"{str(path)!r}: benchmarks.{benchmark}")
        found += [
            {
                "model": document.get("model"),
                "benchmark": benchmark,
                "estimate": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "problems": problems,
            }
            for name, estimate in estimates.items()
        ]
    return found
