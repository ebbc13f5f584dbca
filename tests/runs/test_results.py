"""`results.json`: what is written is what is read, older files included."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dgpo.files import write_json_atomic
from dgpo.runs.results import (
    GENERATIONS,
    RATES,
    RESULTS,
    BenchmarkResult,
    Estimate,
    Evaluation,
    problems_of,
    read_results,
    summary_of,
)

PROBLEMS = [{"id": "a", "n": 4, "correct": 1, "greedy": 1}, {"id": "b", "n": 4, "correct": 0, "greedy": 0}]


def evaluation() -> Evaluation:
    found = BenchmarkResult(
        problems=3,
        grader="exact",
        data={"sha256": "0"},
        estimates={"greedy": Estimate(0.5, 0.1, 0.9, 0.2, 0.7), "avg@4": Estimate(0.125, 0.0, 0.5, 0.1)},
        rates=dict.fromkeys(RATES, 0.0),
        per_problem=PROBLEMS,
        excluded=["c"],
    )
    return Evaluation("m", {}, {"samples": 4}, {}, {}, {"toy": found}, {}, {"seconds": 1.0}, [{"id": "a"}])


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / RESULTS, evaluation().document())
    document = read_results(tmp_path)
    assert document == read_results(tmp_path / RESULTS) == evaluation().document()
    assert "generations" not in document
    toy = document["benchmarks"]["toy"]
    assert summary_of(toy, "toy") == (3, evaluation().benchmarks["toy"].estimates)
    assert problems_of(toy, "toy") == {"c": {"n": 0}, "a": PROBLEMS[0], "b": PROBLEMS[1]}


def test_results_of_an_older_version(tmp_path: Path) -> None:
    """Without what was added later: `detectable`, and the standard error of an estimate."""
    document = evaluation().document()
    del document["benchmarks"]["toy"]["detectable"]
    document["benchmarks"]["toy"]["estimates"] = {"greedy": {"value": 0.5, "low": 0, "high": 1}}
    (tmp_path / RESULTS).write_text(json.dumps(document))
    ((_, found),) = summary_of(read_results(tmp_path)["benchmarks"]["toy"], "toy")[1].items()
    assert (found.value, found.low, found.high, found.detectable) == (0.5, 0.0, 1.0, None)
    assert math.isnan(found.se)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no results\.json; expected a results\.json of `dgpo eval`"):
        read_results(tmp_path)
    (tmp_path / GENERATIONS).write_text("")
    for path in (tmp_path, tmp_path / RESULTS):
        with pytest.raises(ValueError, match="is not finished; rerun the same `dgpo eval` command to resume it"):
            read_results(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": "3"}, r"toy\.problems = '3'; expected an integer"),
        ({"estimates": None}, r"toy\.estimates = None; expected an object"),
        (
            {"estimates": {"greedy": {"value": 1.0, "low": "x"}}},
            r"toy\.estimates\.greedy\.low = 'x'; expected a finite",
        ),
        ({"estimates": {"greedy": 1.0}}, r"toy\.estimates\.greedy\.value = None; expected a finite number"),
    ],
)
def test_damaged_estimates(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summary_of(evaluation().document()["benchmarks"]["toy"] | change, "toy")


def test_what_is_not_a_results_file(tmp_path: Path) -> None:
    for content, message in (
        ("{", "is not valid JSON"),
        ("[]", r"schema = None; expected 'dgpo\.evaluation/1'"),
        ('{"schema": "dgpo.evaluation/1", "benchmarks": {"toy": 1}}', r"benchmarks\.toy = 1; expected an object"),
    ):
        (tmp_path / RESULTS).write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            read_results(tmp_path)
        assert str(tmp_path / RESULTS) in str(error.value)
