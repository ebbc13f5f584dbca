"""From the folder of a run to its `Outcome`: the evaluations that it made, and whether it diverged."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from dgpo.comparison.cells import CellFolder
from dgpo.comparison.divergence import FAILED, diverged
from dgpo.comparison.outcome import Outcome
from dgpo.comparison.study import Study
from dgpo.runs.results import problems_of, read_results

Scores = Mapping[str, float]
"""Problem -> its mean score."""


def scores_of(results: Path) -> dict[str, Scores]:
    """Task -> the score of each problem in an evaluation: its share of correct samples, or 0 and 1 if it is greedy.

    Raises:
        ValueError: as `dgpo.runs.results.read_results` and `problems_of`; or a task has no problem that was graded.
    """
    found: dict[str, Scores] = {}
    for task, benchmark in read_results(results)["benchmarks"].items():
        rows = problems_of(benchmark, f"{str(results)!r}: benchmarks.{task}")
        scores = {str(key): row["correct"] / row["n"] for key, row in rows.items() if row["n"]}
        if not scores:
            scores = {str(key): float(row["greedy"]) for key, row in rows.items() if row.get("greedy") is not None}
        if not scores:
            raise ValueError(f"{str(results)!r}: {task} has no problem that was graded")
        found[task] = scores
    return found


def evaluations(folder: CellFolder, steps: Iterable[int]) -> dict[int, dict[str, Scores]]:
    """Step -> task -> scores, of those steps that the run has evaluated so far. Raises ValueError as `scores_of`."""
    found = {}
    for step in steps:
        results = folder.train / "eval" / str(step)
        if (results / "results.json").exists():
            found[step] = scores_of(results)
    return found


def starting_scores(folders: Iterable[CellFolder]) -> tuple[dict[str, Scores], list[str]]:
    """The scores before training, and the runs in which they are others than in the first run that has them.

    All runs start from one checkpoint and evaluate with the same seed, so that other scores mean other weights, other
    problems, or hardware that rounds otherwise.

    Raises:
        ValueError: as `scores_of`.
    """
    first: dict[str, Scores] = {}
    others = []
    for folder in folders:
        found = evaluations(folder, [0]).get(0)
        if found is None:
            continue
        if not first:
            first = found
        elif found != first:
            others.append(str(folder.cell))
    return first, others


def outcomes(study: Study, folder: CellFolder, start: Mapping[str, Scores]) -> list[Outcome]:
    """What a finished or failed run came to, per task; none for a run that may still go on.

    Args:
        study: that the run belongs to.
        folder: of the run.
        start: from `starting_scores`, for a run that failed before its first evaluation.

    Raises:
        ValueError: a finished run whose last evaluation is missing, or results that cannot be read.
    """
    state = folder.progress().state
    if state not in ("finished", "failed"):
        return []
    curve = evaluations(folder, study.evaluated)
    if start:
        curve.setdefault(0, dict(start))
    if state == "finished" and study.updates not in curve:
        raise ValueError(f"{str(folder.path)!r} is finished, but has no evaluation of update {study.updates}")
    log, steps = folder.log(), sorted(curve)
    found = []
    for task in start:
        scores = [statistics.fmean(curve[step][task].values()) for step in steps]
        last = curve[steps[-1]][task]
        reason = FAILED if state == "failed" else diverged(log, curve[0][task], last)
        found.append(Outcome(folder.cell.arm, folder.cell.seed, task, tuple(steps), tuple(scores), dict(last), reason))
    return found
