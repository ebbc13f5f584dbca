"""`dgpo compare-results` on results files made by hand: the table, the file, and one clear error for wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo.evaluation.compare import compare


def write(file: Path, correct: list[int], model: str = "models/[first]", **settings: Any) -> Path:
    rows = [{"id": f"p{place}", "n": 4, "correct": c, "greedy": None} for place, c in enumerate(correct)]
    document = {
        "schema": "dgpo.evaluation/1",
        "model": model,
        "sampling": {"samples": 4, "temperature": 0.6, **settings},
        "benchmarks": {"aime24": {"grader": "exact 1", "data": {"sha256": "ab12"}, "per_problem": rows}},
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document))
    return file


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "a" / "results.json", [0, 1, 2, 3, 4, 0]),
        write(tmp_path / "b" / "results.json", [1, 2, 3, 4, 4, 0], model="models/second"),
    )


def test_the_table(dgpo: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    done = dgpo("compare-results", *pair)
    assert done.code == 0, done.err
    assert "A = models/[first]" in done.out  # brackets are not markup
    assert "B = models/second" in done.out
    lines = done.out.splitlines()
    first = next(place for place, line in enumerate(lines) if "aime24" in line)
    upper, lower = ([cell.strip() for cell in line.strip("│").split("│")] for line in lines[first : first + 2])
    assert (upper[:3], lower[:3]) == (["aime24", "6", "41.7"], ["avg@4", "4 / 0 / 2", "58.3"])
    assert (upper[4], lower[4]) == ("0.125", "0.125")
    assert "Holm p is corrected for 1 comparison; the intervals are not" in " ".join(done.out.split())
    assert "warning" not in done.out


def test_folders_markdown_warnings_and_the_file(
    dgpo: Callable[..., Any], tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    write(pair[1], [1, 2, 3, 4, 4, 0], temperature=1.0)
    out = tmp_path / "new" / "comparison.json"
    folders = [file.parent for file in pair]
    done = dgpo("compare-results", *folders, "--out", out)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "warning: sampling.temperature: A 0.6, B 1.0"
    expected = compare(*pair)
    assert json.loads(out.read_text()) == expected.as_dict()
    assert dgpo("compare-results", *folders, "--markdown").out == expected.as_markdown() + "\n"


def test_wrong_input(dgpo: Callable[..., Any], tmp_path: Path, pair: tuple[Path, Path]) -> None:
    dgpo("compare-results", pair[0], tmp_path / "nowhere").one_error("B: ", "nowhere", "expected a results.json")
    dgpo("compare-results", tmp_path, pair[1]).one_error("A: ", "results.json", "expected a results.json")
    write(pair[1], [1, 2])
    dgpo("compare-results", *pair).one_error("aime24: 6 problems in A, 2 in B", "first 'p2'")
    pair[1].write_text(json.dumps({"estimates": {}}))
    dgpo("compare-results", *pair).one_error("schema = None", "expected 'dgpo.evaluation/1'")


def test_an_out_that_cannot_be_written(dgpo: Callable[..., Any], tmp_path: Path, pair: tuple[Path, Path]) -> None:
    dgpo("compare-results", *pair, "--out", pair[0] / "under-a-file.json").one_error("results.json")


def test_one_file_is_not_enough(dgpo: Callable[..., Any], pair: tuple[Path, Path]) -> None:
    done = dgpo("compare-results", pair[0])
    assert done.code == 2
    assert "the following arguments are required: B" in done.err
