"""What an evaluation found, as an object and as files."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import dgpo
from dgpo.evaluation.estimates import summarise
from dgpo.evaluation.folder import CONFIGURATION, GENERATIONS, as_lines
from dgpo.evaluation.intervals import Estimate, detectable_of_samples
from dgpo.evaluation.suite import Suite
from dgpo.evaluation.votes import same_by
from dgpo.files import write_json_atomic, write_lines_atomic, write_text_atomic

SCHEMA = "dgpo.evaluation/1"
RESULTS = "results.json"
RATES = ("no_answer", "unparsed", "guarded", "timeout", "bad_gold")
"""Reasons of a grade whose rates say something about the evaluation rather than about the model's mathematics."""


@dataclass(frozen=True)
class BenchmarkResult:
    """What was found on one benchmark.

    Attributes:
        problems: P.
        grader: version of the grader.
        data: where the problems come from, and a hash of them.
        estimates: "greedy", "avg@n", "pass@k", "best@n", "maj@n" -> fraction with standard error and 95 % interval over
            problems; empty if no reference answer could be used.
        rates: over all completions: "truncated" (no end token within the budget), "mean_tokens" (per completion whose
            length is known) and the share of each reason in `RATES`; None for what is not known.
        per_problem: per counted problem `id`, `n` samples, `correct` ones, and `greedy` (0, 1, or None).
        excluded: ids of the problems whose reference answer the grader cannot use; they count in no estimate.
        detectable: the smallest true difference to another model that accuracy here would have shown (two-sided test at
            5 %, power 80 %), of `metric` ("avg@n", or "greedy" without samples): `unpaired`, a model on problems of its
            own; `paired`, on the same problems, if both solve each with the same chance, so that the noise of the
            samples is all there is: models that differ need more. None where it is not known (one sample, greedy).
    """

    problems: int
    grader: str
    data: dict[str, Any]
    estimates: dict[str, Estimate]
    rates: dict[str, float | None]
    per_problem: list[dict[str, Any]]
    excluded: list[str]
    detectable: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and what it takes to get the same figures again.

    Attributes:
        model: its name.
        backend: settings of the backend.
        sampling: samples, temperature, top_p, max_new_tokens, seed, greedy; None for what is not known.
        prompt: what the problems' texts were put into.
        versions: of dgpo, Python and the backend's libraries.
        benchmarks: name -> what was found there.
        average: estimate -> unweighted mean over the benchmarks, `value` and `se`; of the estimates that all have.
        timing: `completions` that the last session generated and graded, in `seconds` of wall-clock time.
        generations: one row per completion in canonical order; see `graded_rows`.
    """

    model: str
    backend: dict[str, Any]
    sampling: dict[str, Any]
    prompt: dict[str, Any]
    versions: dict[str, str]
    benchmarks: dict[str, BenchmarkResult]
    average: dict[str, dict[str, float]]
    timing: dict[str, Any]
    generations: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """What `results.json` holds: the attributes except `generations`, and the `schema`."""
        fields = {name: value for name, value in vars(self).items() if name != "generations"}
        found = {name: asdict(result) for name, result in self.benchmarks.items()}
        return {"schema": SCHEMA, **fields, "benchmarks": found}


def summary(
    suites: Sequence[Suite],
    run: Mapping[str, Any],
    generations: list[dict[str, Any]],
    ks: Sequence[int] | None,
    timing: dict[str, Any],
) -> Evaluation:
    """Figures from rows in canonical order; `run` is what `run.json` holds."""
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


def write(evaluation: Evaluation, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write all files of an evaluation into `folder`, which is created; each file whole or not at all.

    `generations.jsonl` holds one completion per line and is written before `results.json`: results without their
    generations do not occur. What was there is replaced.

    Returns:
        the paths (results, generations).

    Raises:
        ValueError: something holds NaN or an infinity.
        OSError: the folder cannot be created or written to.
    """
    json.dumps(evaluation.document(), allow_nan=False)  # fail before any file is replaced
    path = write_lines_atomic(Path(folder) / GENERATIONS, as_lines(evaluation.generations))
    write_json_atomic(Path(folder) / CONFIGURATION, run_of(evaluation.document()))
    return write_results(evaluation, folder), path


def write_results(evaluation: Evaluation, folder: str | os.PathLike[str]) -> Path:
    """Write `results.md` and, last, `results.json`."""
    from dgpo.evaluation.tables import markdown

    write_text_atomic(Path(folder) / "results.md", markdown(evaluation))
    return write_json_atomic(Path(folder) / RESULTS, evaluation.document())


def run_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The `run.json` that belongs to a `results.json`."""
    found = {name: {"grader": one["grader"], "data": one["data"]} for name, one in document["benchmarks"].items()}
    return {**{name: document[name] for name in ("model", "backend", "sampling", "prompt")}, "benchmarks": found}


def recorded_timing(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The timing in the `results.json` of a folder; empty if the process died before it was written."""
    file = None if folder is None else Path(folder) / RESULTS
    if file is None or not file.exists():
        return {}
    return dict(json.loads(file.read_text(encoding="utf-8"))["timing"])


def _result(
    about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ks: Sequence[int] | None, suite: Suite
) -> BenchmarkResult:
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_problem.setdefault(row["id"], []).append(row)
    excluded = [name for name, of in by_problem.items() if any(row["score"] is None for row in of)]
    counted = {name: of for name, of in by_problem.items() if name not in set(excluded)}
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
    """Benchmarks are independent: the variances of their estimates add up."""
    names = [name for name in estimates[0] if all(name in others for others in estimates)]
    return {
        name: {
            "value": fmean(of[name].value for of in estimates),
            "se": sqrt(sum(of[name].se ** 2 for of in estimates)) / len(estimates),
        }
        for name in names
    }
