"""`results.json` of `dgpo eval`: its contents as objects, and how to read it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dgpo.files import read_json, shortened

SCHEMA = "dgpo.evaluation/1"
RESULTS, GENERATIONS, CONFIGURATION = "results.json", "generations.jsonl", "run.json"
"""The files of an evaluation: results; one completion per line; configuration."""

ENDS = ("value", "low", "high")
RATES = ("no_answer", "unparsed", "guarded", "timeout", "bad_gold")
"""Reasons of grades whose rates tell about the evaluation rather than about the model."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, as fraction; in a comparison over seeds (`dgpo.comparison`), a statistic of runs.

    Attributes:
        value: the mean.
        low: lower end of its interval.
        high: upper end of its interval.
        se: standard error over problems: standard deviation (P - 1) of the per-problem values / sqrt(P); 0 for one.
            Over seeds: the standard deviation of the bootstrap, times sqrt(n / (n - 1)).
        detectable: the smallest true difference that a two-sided test at the interval's level finds with a chance of
            80 %. For a difference: of a comparison like this one. For the mean of one model: between two such models,
            *each on problems of its own* (unpaired). Above 1: none. None in results of older versions.
    """

    value: float
    low: float
    high: float
    se: float
    detectable: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """The results on one benchmark.

    Attributes:
        problems: P.
        grader: version of the grader.
        data: source and hash of the problems.
        estimates: "greedy", "avg@n", "pass@k", "best@n", "maj@n" -> fraction with standard error and 95 % interval over
            problems; empty if no reference answer could be used.
        rates: over all completions: "truncated" (no end token within the budget), "mean_tokens" (per completion whose
            length is known) and the share of each reason in `RATES`; None for what is not known.
        per_problem: per counted problem `id`, `n` samples, `correct` ones, and `greedy` (0, 1, or None).
        excluded: ids of the problems whose reference answer the grader cannot use; no estimate includes them.
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
    """The results of `evaluate`, and everything needed to reproduce them.

    Attributes:
        model: its name.
        backend: settings of the backend.
        sampling: samples, temperature, top_p, max_new_tokens, seed, greedy; None for what is not known.
        prompt: the prompt template.
        versions: of dgpo, Python and the backend's libraries.
        benchmarks: name -> what was found there.
        average: estimate -> `value` and `se` of the unweighted mean over the benchmarks, if all of them have it.
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


def results_file(path: str | os.PathLike[str]) -> Path:
    """The `results.json` of a folder, or the file itself."""
    return Path(path) / RESULTS if Path(path).is_dir() else Path(path)


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a `results.json`, as `Evaluation.document` or an older version wrote it.

    Args:
        path: the file, or its folder.

    Raises:
        ValueError: if the file does not exist, or is not a `results.json`.
    """
    file, expected = results_file(path), f"expected a {RESULTS} of `dgpo eval`, or its folder"
    try:
        document = read_json(file)
    except OSError as error:
        if not file.exists() and (file.parent / GENERATIONS).is_file():
            expected = "the evaluation there is not finished; rerun the same `dgpo eval` command to resume it"
        what = f" holds no {RESULTS}" if Path(path).is_dir() and not file.exists() else f": {error.strerror}"
        raise ValueError(f"{str(path)!r}{what}; {expected}") from error
    except ValueError as error:
        raise ValueError(f"{error}; {expected}") from error
    return dict(checked(document, repr(str(file))))


def checked(document: Any, where: str) -> Mapping[str, Any]:
    """The content of a `results.json`, if it has the right schema and benchmarks.

    Raises:
        ValueError: if it does not.
    """
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if schema != SCHEMA:
        raise ValueError(f"{where}: schema = {schema!r}; expected {SCHEMA!r}, a {RESULTS} of `dgpo eval`")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, Mapping):
        raise ValueError(f"{where}: benchmarks = {shortened(benchmarks)}; expected an object")
    for name, found in benchmarks.items():
        if not isinstance(found, Mapping):
            raise ValueError(f"{where}: benchmarks.{name} = {shortened(found)}; expected an object")
    return dict(document)


def summary_of(benchmark: Mapping[str, Any], where: str) -> tuple[int, dict[str, Estimate]]:
    """The number of problems and the estimates of one benchmark.

    Raises:
        ValueError: if they are missing or not numbers; the message begins with `where`.
    """
    problems, given = benchmark.get("problems"), benchmark.get("estimates")
    if not isinstance(problems, int):
        raise ValueError(f"{where}.problems = {shortened(problems)}; expected an integer")
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}.estimates = {shortened(given)}; expected an object")
    found = {}
    for name, about in given.items():
        for end in ENDS:
            value = about.get(end) if isinstance(about, Mapping) else None
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{where}.estimates.{name}.{end} = {shortened(value)}; expected a finite number")
        value, low, high = (float(about[end]) for end in ENDS)
        found[name] = Estimate(value, low, high, about.get("se", math.nan), about.get("detectable"))
    return problems, found


def problems_of(benchmark: Mapping[str, Any], where: str) -> dict[Any, Mapping[str, Any]]:
    """Id -> its row of `per_problem`; for an excluded problem, a row without samples.

    Raises:
        ValueError: if there are none, or a row is malformed; the message begins with `where`.
    """
    rows, excluded = benchmark.get("per_problem"), benchmark.get("excluded", [])
    if not isinstance(rows, list) or not isinstance(excluded, list) or not rows + excluded:
        raise ValueError(f"{where}.per_problem is missing or empty; expected one entry for each problem")
    # another version of the grader may exclude other problems; they belong to the benchmark all the same
    problems: dict[Any, Mapping[str, Any]] = {identity: {"n": 0} for identity in excluded}
    for place, row in enumerate(rows):
        n, correct = (row.get("n"), row.get("correct")) if isinstance(row, Mapping) else (None, None)
        if not isinstance(n, int) or not isinstance(correct, int) or not 0 <= correct <= n or "id" not in row:
            raise ValueError(f"{where}.per_problem[{place}] = {row!r}; expected id, and integers 0 <= correct <= n")
        if row.get("greedy") not in (0, 1, None):
            raise ValueError(f"{where}.per_problem[{place}]: greedy = {row['greedy']!r}; expected 0, 1 or null")
        if row["id"] in problems:
            raise ValueError(f"{where}.per_problem[{place}]: duplicate id {row['id']!r}; expected each id once")
        problems[row["id"]] = row
    return problems
