"""Results of `dgpo eval`, read from their files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = "dgpo.evaluation/1"
RESULTS = "results.json"


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """One `results.json`, or the folder it lies in.

    Raises:
        ValueError: there is none, or it is none; says what was expected.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{str(path)!r} holds no {RESULTS}; expected a folder that `dgpo eval` wrote, or the file")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is not valid JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{str(file)!r} has schema {schema!r}; expected {SCHEMA!r}")
    return dict(document)


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
