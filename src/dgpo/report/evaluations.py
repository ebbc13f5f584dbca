"""Results of `dgpo eval`, as rows of the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo.runs.results import Estimate, read_results, results_file, summary_of
from dgpo.warning import warn


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one evaluation.

    Attributes:
        folder: of its `results.json`.
        document: what the file holds.
        estimates: benchmark -> number of problems, and estimate by name.
    """

    folder: Path
    document: Mapping[str, Any]
    estimates: Mapping[str, tuple[int, Mapping[str, Estimate]]]

    @property
    def model(self) -> str:
        """Name of the model that was evaluated; empty if it is not known."""
        return str(self.document.get("model") or "")

    def rows(self) -> list[dict[str, Any]]:
        """One row per benchmark and estimate: fractions with the ends of their 95 % interval."""
        return [
            {
                "model": self.document.get("model"),
                "benchmark": benchmark,
                "estimate": name,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "problems": problems,
            }
            for benchmark, (problems, estimates) in self.estimates.items()
            for name, estimate in estimates.items()
        ]


def readable(paths: Sequence[str | os.PathLike[str]]) -> list[Results]:
    """The results that can be read; damaged ones are left out, with a warning that names them.

    Raises:
        ValueError: if a file does not exist.
    """
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except ValueError as error:
            if not results_file(path).is_file():
                raise
            warn(f"left out: {error}")
    return found


def read(path: str | os.PathLike[str]) -> Results:
    """The results of one evaluation, from its folder or its `results.json`.

    Raises:
        ValueError: as `read_results`; or if an entry that the page shows is damaged.
    """
    document = read_results(path)
    return Results(
        folder=results_file(path).parent,
        document=document,
        estimates={
            name: summary_of(about, f"{str(path)!r}: benchmarks.{name}")
            for name, about in document["benchmarks"].items()
        },
    )
