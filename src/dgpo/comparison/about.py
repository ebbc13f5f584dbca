"""What ran: the study, its tuning, and the versions, commits and machines of its runs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dgpo import __version__
from dgpo.comparison.cells import CellFolder
from dgpo.comparison.divergence import RULES
from dgpo.comparison.study import Study
from dgpo.comparison.tuning import Choices
from dgpo.files import read_json
from dgpo.redaction import without_secrets
from dgpo.runs.schema import INFO

OF_RUNS = ("versions", "git", "hardware", "data", "model")
"""Entries of a run's `run.json` that are collected."""


def about(
    study: Study, choices: Choices, folders: Sequence[CellFolder], tuning: Sequence[CellFolder] = ()
) -> dict[str, Any]:
    """What a summary names beside its figures.

    Args:
        study: that is summarised.
        choices: of its settings.
        folders: of its final runs.
        tuning: of its tuning runs.

    Returns:
        `dgpo`, the version that summarises; `study`, all of it; `tuning`, budget and every trial; `divergence`, the
        rules; `runs`: per entry of `OF_RUNS` each value that occurs, and how many runs have it; `seconds`, of all
        runs together, tuning included.
    """
    everything = [*folders, *tuning]
    return {
        "dgpo": __version__,
        "study": without_secrets(asdict(study)),
        "tuning": choices.document() if study.tune else None,
        "divergence": RULES,
        "runs": _collected(folders),
        "seconds": round(sum(folder.progress().seconds for folder in everything), 1),
    }


def mixed(found: dict[str, Any]) -> list[str]:
    """A line for each of versions, commit, hardware and data that is not the same in all runs of `about`."""
    lines = []
    for name in ("versions", "git", "hardware", "data"):
        if len(values := found["runs"][name]) > 1:
            counts = ", ".join(str(one["runs"]) for one in values)
            lines.append(f"the runs differ in {name}: {len(values)} kinds, of {counts} runs (`about.runs.{name}`)")
    return lines


def _collected(folders: Sequence[CellFolder]) -> dict[str, list[dict[str, Any]]]:
    infos = [read_json(file) for folder in folders if (file := folder.record / INFO).exists()]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in OF_RUNS:
        counts: dict[str, int] = {}
        for info in infos:
            text = json.dumps(info.get(name), sort_keys=True)
            counts[text] = counts.get(text, 0) + 1
        found[name] = [{"value": json.loads(text), "runs": count} for text, count in counts.items()]
    return found
