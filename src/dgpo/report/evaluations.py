"""Results of `dgpo eval`, read from their files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgpo.files import read_json, shortened

SCHEMA = "dgpo.evaluation/1"
RESULTS = "results.json"


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One `results.json`, or the folder it lies in.

    Raises:
        ValueError: there is none, or it is none, or it lacks what the report shows; says what was expected.
    """
    path = Path(path)
    file = _file(path)
    if not file.is_file():
        raise ValueError(f"{str(path)!r} holds no {RESULTS}; expected a folder that `dgpo eval` wrote, or the file")
    document = read_json(file)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{str(file)!r} has schema {schema!r}; expected {SCHEMA!r}")
    if wrong := _wrong(document):
        raise ValueError(f"{str(file)!r} is damaged: {wrong}")
    return dict(document)


def readable(paths: Sequence[str | os.PathLike[str]]) -> dict[Path, dict[str, Any]]:
    """What `read` makes of each; one that is damaged is left out, with a warning that names it.

    Raises:
        ValueError: there is no such file.
    """
    found = {}
    for path in map(Path, paths):
        try:
            found[path] = read(path)
        except (ValueError, OSError) as error:
            if not _file(path).is_file():
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def _wrong(document: dict[str, Any]) -> str:
    """The first entry that is not what `rows` reads; empty where all are."""
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, dict):
        return f"benchmarks = {shortened(benchmarks)}; expected an object"
    for name, found in benchmarks.items():
        if not isinstance(found, dict) or not isinstance(found.get("estimates"), dict):
            return f"benchmarks.{name} has no object of estimates"
        if not isinstance(found.get("problems"), int):
            return f"benchmarks.{name}.problems = {shortened(found.get('problems'))}; expected an integer"
        for estimate, figures in found["estimates"].items():
            for end in ("value", "low", "high"):
                figure = figures.get(end) if isinstance(figures, dict) else None
                if not isinstance(figure, int | float) or not math.isfinite(figure):
                    return f"benchmarks.{name}.estimates.{estimate}.{end} = {shortened(figure)}; expected a number"
    return ""


def _file(path: Path) -> Path:
    return path / RESULTS if path.is_dir() else path


def rows(documents: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per evaluation, benchmark and estimate: fractions with the ends of their 95 % interval."""
    return [
        {
            "label": label,
            "model": document.get("model"),
            "benchmark": benchmark,
            "estimate": name,
            "value": estimate["value"],
            "low": estimate["low"],
            "high": estimate["high"],
            "problems": found["problems"],
        }
        for label, document in documents
        for benchmark, found in document["benchmarks"].items()
        for name, estimate in found["estimates"].items()
    ]
