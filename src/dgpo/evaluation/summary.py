"""Estimates and rates from graded rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np

import dgpo
from dgpo.evaluation.estimates import summarise
from dgpo.evaluation.intervals import detectable_of_samples
from dgpo.evaluation.suite import Suite
from dgpo.evaluation.votes import same_by
from dgpo.runs.results import RATES, BenchmarkResult, Estimate, Evaluation


def summary(
    suites: Sequence[Suite],
    run: Mapping[str, Any],
    generations: list[dict[str, Any]],
    ks: Sequence[int] | None,
    timing: dict[str, Any],
) -> Evaluation:
    """The results of rows in canonical order; `run` is what `run.json` holds."""
    rows: dict[str, list[dict[str, Any]]] = {suite.name: [] for suite in suites}
    for row in generations:
        rows[row["benchmark"]].append(row)
    benchmarks = {suite.name: _result(run["benchmarks"][suite.name], rows[suite.name], ks, suite) for suite in suites}
    return Evaluation(
        model=run["model"],
        backend=dict(run["backend"]),
        sampling=dict(run["sampling"]),
        prompt=dict(run["prompt"]),
        versions={
            "dgpo": dgpo.__version__,
            "python": sys.version.split()[0],
            **run["backend"].get("versions", {}),
        },
        benchmarks=benchmarks,
        average=_average([result.estimates for result in benchmarks.values()]),
        timing=timing,
        generations=generations,
    )


def require_ks(ks: Iterable[int] | None, samples: int) -> list[int] | None:
    """The k of pass@k, checked. Raises ValueError for one outside 1..samples."""
    if ks is None:
        return None
    found = list(ks)
    if wrong := [k for k in found if not 1 <= k <= samples]:
        raise ValueError(f"ks = {found}: k = {wrong[0]} with samples = {samples}; expected 1 <= k <= samples")
    return found


def _result(
    about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ks: Sequence[int] | None, suite: Suite
) -> BenchmarkResult:
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_problem.setdefault(row["id"], []).append(row)
    # a gold that cannot be used excludes its problem, whatever the other completions got
    excluded = [name for name, of in by_problem.items() if any(row["score"] is None for row in of)]
    counted = {name: of for name, of in by_problem.items() if name not in excluded}
    samples = {name: [row for row in of if row["kind"] == "sample"] for name, of in counted.items()}
    greedy = {name: row["score"] == 1.0 for name, of in counted.items() for row in of if row["kind"] == "greedy"}
    estimates: dict[str, Estimate] = {}
    if counted:
        correct = np.array([[row["score"] == 1.0 for row in of] for of in samples.values()], dtype=bool)
        answers = [[row["extracted"] for row in of] for of in samples.values()]
        estimates = summarise(
            correct.reshape(len(counted), -1),
            [greedy[name] for name in counted] if greedy else None,
            ks,
            answers=answers if correct.size else None,
            same=same_by(suite.grader),
        )
    per_problem = [
        {
            "id": name,
            "n": len(samples[name]),
            "correct": sum(row["score"] == 1.0 for row in samples[name]),
            "greedy": int(greedy[name]) if greedy else None,
        }
        for name in counted
    ]
    return BenchmarkResult(
        problems=len(by_problem),
        grader=about["grader"],
        data=dict(about["data"]),
        estimates=estimates,
        rates=_rates(rows),
        per_problem=per_problem,
        detectable=_detectable(estimates, [(one["n"], one["correct"]) for one in per_problem]),
        excluded=excluded,
    )


def _detectable(estimates: Mapping[str, Estimate], counts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    metric = next((name for name in estimates if name.startswith("avg@")), "greedy")
    if metric not in estimates:
        return {"metric": metric, "unpaired": None, "paired": None}
    # one sample of a problem does not show how much its samples vary
    paired = detectable_of_samples(counts) if all(n > 1 for n, _ in counts) else None
    return {"metric": metric, "unpaired": estimates[metric].detectable, "paired": paired}


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    reasons = Counter(row["reason"] for row in rows)
    truncated = [row["truncated"] for row in rows if row["truncated"] is not None]
    tokens = [row["tokens"] for row in rows if row["tokens"] is not None]
    return {
        "truncated": fmean(truncated) if truncated else None,
        **{reason: reasons[reason] / len(rows) for reason in RATES},
        "mean_tokens": fmean(tokens) if tokens else None,
    }


def _average(estimates: Sequence[Mapping[str, Estimate]]) -> dict[str, dict[str, float]]:
    """The mean over benchmarks; they are independent, so their variances add up."""
    names = [name for name in estimates[0] if all(name in others for others in estimates)]
    return {
        name: {
            "value": fmean(of[name].value for of in estimates),
            "se": sqrt(sum(of[name].se ** 2 for of in estimates)) / len(estimates),
        }
        for name in names
    }
