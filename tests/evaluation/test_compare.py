"""Paired comparison: the statistics against hand and brute force, and what two result files must agree in."""

from __future__ import annotations

import copy
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.evaluation.compare import COLUMNS, compare
from dgpo.evaluation.intervals import interval_of_differences
from dgpo.evaluation.paired import holm, paired, sign_flip_p_value


def benchmark(correct: list[int], n: int = 8, greedy: list[int] | None = None, **other: Any) -> dict[str, Any]:
    rows = [
        {"id": f"p{place}", "n": n, "correct": c, "greedy": None if greedy is None else greedy[place]}
        for place, c in enumerate(correct)
    ]
    return {"problems": len(rows), "grader": "exact 1", "data": {"sha256": "ab12"}, "per_problem": rows, **other}


def results(**benchmarks: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": "dgpo.evaluation/1",
        "model": "some/model",
        "backend": {"kind": "transformers", "model": "some/model", "dtype": "bfloat16", "versions": {"torch": "2"}},
        "sampling": {"samples": 8, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 8192, "seed": 0},
        "prompt": {"name": "boxed", "template": "{problem} ..."},
        "benchmarks": benchmarks,
    }


A = [0, 8, 4, 2, 0, 6]
B = [0, 8, 6, 3, 1, 5]


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, last = path.split(".")
    place: Any = document
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    place[last] = value
    return document


# --- statistics -------------------------------------------------------------------------------------------------------


def test_paired_by_hand() -> None:
    found = paired((A, 8), (B, 8))
    d = (np.array(B) - np.array(A)) / 8
    assert (found.problems, found.better, found.worse, found.equal) == (6, 3, 1, 2)
    assert (found.a, found.b) == (pytest.approx(20 / 48), pytest.approx(23 / 48))
    assert found.difference == interval_of_differences(d)
    assert found.difference.value == pytest.approx(3 / 48)
    assert found.difference.se == pytest.approx(np.std(d, ddof=1) / math.sqrt(6))
    variances = [c / 8 * (1 - c / 8) / 7 for c in A + B]
    assert found.generation_se == pytest.approx(math.sqrt(sum(variances)) / 6)
    assert found.two_level.low <= found.difference.low < found.difference.high <= found.two_level.high


def test_swapping_the_models_turns_the_signs() -> None:
    one, other = paired((A, 8), (B, 8)), paired((B, 8), (A, 8))
    assert (one.better, one.worse, one.p_value) == (other.worse, other.better, other.p_value)
    assert one.difference.value == -other.difference.value
    assert one.difference.se == pytest.approx(other.difference.se)


def test_other_numbers_of_samples_and_single_ones() -> None:
    found = paired(([1, 0, 4], [4, 4, 4]), ([2, 2, 8], 8))
    assert found.difference.value == pytest.approx(0.25 / 3)
    assert (found.better, found.worse, found.equal) == (1, 0, 2)
    greedy = paired(([1, 0, 1], 1), ([1, 1, 1], 1))
    assert greedy.generation_se is None
    assert (greedy.two_level.low, greedy.two_level.high) == (0, 1)


def test_the_generation_error_is_what_generating_again_gives() -> None:
    """On fixed problems: the spread of the difference over 20,000 evaluations, and the mean of its estimate."""
    rng = np.random.default_rng(0)
    p, q = rng.random(10), rng.random(10)
    a, b = rng.binomial(8, p, (20_000, 10)), rng.binomial(8, q, (20_000, 10))
    spread = ((b - a) / 8).mean(axis=1).std()
    squares = [paired((a[i], 8), (b[i], 8), resamples=2).generation_se ** 2 for i in range(400)]
    assert math.sqrt(np.mean(squares)) == pytest.approx(spread, rel=0.03)


def test_nothing_differs() -> None:
    found = paired((A, 8), (A, 8))
    assert (found.p_value, found.equal) == (1.0, 6)
    # six problems without a difference do not say that others have none
    assert (found.difference.value, found.difference.low) == (0, -found.difference.high)
    assert found.difference.high == pytest.approx(0.447, abs=1e-3)


@pytest.mark.parametrize(("a", "b"), [(([1], 8), ([1, 2], 8)), (([], 8), ([], 8)), (([9], 8), ([1], 8))])
def test_paired_refuses(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        paired(a, b)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_the_sign_flip_test_tries_all_signs(eighths: list[int]) -> None:
    d = np.array(eighths) / 8
    means = [float(np.mean(d * signs)) for signs in product((1, -1), repeat=len(eighths))]
    brute = sum(abs(mean) >= abs(d.mean()) - 1e-12 for mean in means) / len(means)
    assert sign_flip_p_value(d) == pytest.approx(brute)


def test_differences_that_add_up_to_zero_but_for_rounding_give_one() -> None:
    assert sum([-0.3, -0.1, 0.1, 0.3]) != 0
    assert sign_flip_p_value([-0.3, -0.1, 0.1, 0.3]) == 1


def test_random_signs_agree_with_all_signs() -> None:
    d = np.random.default_rng(0).normal(0.2, 0.3, 16)
    exact = sign_flip_p_value(d, resamples=2**16)
    assert 0.001 < exact < 0.3
    assert sign_flip_p_value(d, resamples=10_000) == pytest.approx(exact, abs=0.03)
    assert sign_flip_p_value(d, resamples=999) == sign_flip_p_value(d, resamples=999)


def test_problems_that_are_equal_do_not_change_the_p_value() -> None:
    d = [0.5, 0.25, -0.125, 0.375]
    assert sign_flip_p_value(d + [0.0] * 50) == sign_flip_p_value(d)


@pytest.mark.parametrize("values", [[[0.1]], [float("nan")]])
def test_the_sign_flip_test_refuses(values: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        sign_flip_p_value(values)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="expected"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-15
    assert sorted(range(len(p_values)), key=lambda i: (p_values[i], corrected[i])) == sorted(
        range(len(p_values)), key=lambda i: (corrected[i], p_values[i])
    )


# --- results ----------------------------------------------------------------------------------------------------------


def test_two_results() -> None:
    a = results(aime=benchmark(A, greedy=[0, 1, 1, 0, 0, 1]), amc=benchmark([1, 2]))
    b = results(aime=benchmark(B, greedy=[0, 1, 1, 1, 0, 1]), amc=benchmark([2, 4])) | {"model": "other/model"}
    found = compare(a, b)
    assert (found.a, found.b, found.warnings) == ("some/model", "other/model", [])
    assert [(row.benchmark, row.metric) for row in found.rows] == [
        ("aime", "avg@8"),
        ("aime", "greedy"),
        ("amc", "avg@8"),
    ]
    assert found.rows[0].paired == paired((A, 8), (B, 8))
    assert found.rows[1].paired.difference.value == pytest.approx(1 / 6)
    assert [row.p_holm for row in found.rows] == holm([row.paired.p_value for row in found.rows])


def test_problems_are_paired_by_id() -> None:
    a, b = results(aime=benchmark(A)), results(aime=benchmark(B))
    b["benchmarks"]["aime"]["per_problem"].reverse()
    assert compare(a, b).rows[0].paired == paired((A, 8), (B, 8))


def test_files_and_folders(tmp_path: Path) -> None:
    a, b = results(aime=benchmark(A)), results(aime=benchmark(B))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text(json.dumps(a))
    (tmp_path / "b.json").write_text(json.dumps(b))
    assert compare(tmp_path / "a", str(tmp_path / "b.json")) == compare(a, b)


def test_the_same_results_give_the_same_comparison_and_another_seed_does_not() -> None:
    rng = np.random.default_rng(0)
    a, b = (results(x=benchmark(rng.binomial(8, 0.5, 30).tolist())) for _ in "ab")
    assert compare(a, b) == compare(a, b)
    assert compare(a, b) != compare(a, b, seed=1)


@pytest.mark.parametrize(
    ("path", "value", "warning"),
    [
        ("sampling.temperature", 1.0, "sampling.temperature: A 0.6, B 1.0"),
        ("sampling.max_new_tokens", 512, "sampling.max_new_tokens: A 8192, B 512"),
        ("prompt.name", "plain", "prompt.name: A boxed, B plain"),
        ("prompt.system", "Think.", "prompt.system: A not given, B Think."),
        ("prompt.template", "{problem}\nThink.", "prompt.template: two long texts that differ"),
        ("backend.kind", "vllm", "backend.kind: A transformers, B vllm"),
        ("benchmarks.aime.grader", "exact 2", "aime.grader: A exact 1, B exact 2"),
        ("benchmarks.aime.data", {}, "aime: no data hash in B; only the ids of the problems were compared"),
        ("benchmarks.more", benchmark([1]), "more: in B only"),
        ("benchmarks.aime.per_problem.2.n", 0, "aime: no graded samples in A or B for 1 problem: 'p2', ..."),
        ("benchmarks.aime.per_problem.2.greedy", 1, "aime: greedy in B only"),
    ],
)
def test_what_differs_is_a_warning(path: str, value: Any, warning: str) -> None:
    a = results(aime=benchmark([0] * 6))
    assert compare(a, changed(a, path, value)).warnings == [warning]
    swapped = compare(changed(a, path, value), a).warnings
    assert len(swapped) == 1
    assert swapped != [warning] or " A" not in warning or "A or B" in warning


@pytest.mark.parametrize(
    ("path", "value"),
    [("sampling.seed", 1), ("backend.model", "x"), ("backend.weights", "f00"), ("backend.versions.torch", "3")],
)
def test_what_two_models_differ_in_anyway_is_none(path: str, value: Any) -> None:
    a = results(aime=benchmark(A))
    assert compare(a, changed(a, path, value)).warnings == []


def test_problems_that_one_grader_excludes_are_left_out_of_the_pairs() -> None:
    """Their reference answer is of no use to it; the other result has them, and the problems are the same."""
    a, b = results(aime=benchmark(A)), results(aime=benchmark(B, excluded=["p5"]))
    del b["benchmarks"]["aime"]["per_problem"][5]
    found = compare(a, b)
    assert found.rows[0].paired == paired((A[:5], 8), (B[:5], 8))
    assert found.warnings == ["aime: no graded samples in A or B for 1 problem: 'p5', ..."]


def test_problems_without_grades_are_left_out_of_the_pairs() -> None:
    a = results(aime=benchmark(A))
    b = changed(changed(results(aime=benchmark(B)), "benchmarks.aime.per_problem.0.n", 0), "benchmarks.amc", {})
    assert compare(a, b).rows[0].paired == paired((A[1:], 8), (B[1:], 8))


def test_another_number_of_samples_shows_in_the_label() -> None:
    a, b = results(aime=benchmark(A)), results(aime=benchmark(B, n=16))
    assert [row.metric for row in compare(a, b).rows] == ["avg@8 / avg@16"]
    mixed = changed(b, "benchmarks.aime.per_problem.0.n", 12)
    assert [row.metric for row in compare(mixed, mixed).rows] == ["avg@12-16"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "dgpo.evaluation/9", "schema = 'dgpo.evaluation/9'; expected 'dgpo.evaluation/1'"),
        ("benchmarks", [], "benchmarks = []; expected an object"),
        ("benchmarks", {"other": benchmark(A)}, "A has aime; B has other"),
        ("benchmarks.aime", benchmark(A[:5]), "6 problems in A, 5 in B; 1 in A only, first 'p5'"),
        ("benchmarks.aime", benchmark([*A, 1]), "6 problems in A, 7 in B; 1 in B only, first 'p6'"),
        ("benchmarks.aime.data.sha256", "cd34", "data hash ab12 in A, cd34 in B"),
        ("benchmarks.aime.per_problem", [], "B: benchmarks.aime.per_problem is missing"),
        ("benchmarks.aime.per_problem.0.correct", 9, "B: benchmarks.aime.per_problem[0]"),
        ("benchmarks.aime.per_problem.0.n", "8", "B: benchmarks.aime.per_problem[0]"),
        ("benchmarks.aime.per_problem.1.greedy", 0.5, "greedy = 0.5"),
        ("benchmarks.aime.per_problem.1.id", "p0", "duplicate id 'p0'"),
        ("benchmarks.aime", benchmark([0] * 6, n=0, greedy=[1] * 6), "no metric in both"),
    ],
)
def test_what_cannot_be_compared(path: str, value: Any, message: str) -> None:
    a = results(aime=benchmark(A))
    with pytest.raises(ValueError, match="expected") as caught:
        compare(a, changed(a, path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "is not valid JSON"), ("[]", "schema = None"), ("\udcff", "is not UTF-8 text")],
)
def test_files_that_are_no_results(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "results.json"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="expected a results.json|expected 'dgpo") as caught:
        compare(results(aime=benchmark(A)), file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_the_dictionary_is_json_and_complete() -> None:
    a, b = results(aime=benchmark(A)), results(aime=benchmark(B))
    found = json.loads(json.dumps(compare(a, b).as_dict(), allow_nan=False))
    assert (found["schema"], found["comparisons"], found["warnings"]) == ("dgpo.comparison/1", 1, [])
    (row,) = found["rows"]
    assert set(row["difference"]) == {"value", "low", "high", "se", "detectable"} == set(row["two_level"])
    assert row["difference"]["value"] == pytest.approx(3 / 48)
    counts = ("problems", "better", "worse", "equal")
    assert [row[key] for key in counts] == [6, 3, 1, 2]
    assert {"benchmark", "metric", "a", "b", "p_value", "p_holm", "generation_se"} <= set(row)


def test_the_markdown_table() -> None:
    a = results(aime=benchmark(A), amc=benchmark([0] * 12))
    b = changed(results(aime=benchmark(B), amc=benchmark([8] * 12)), "sampling.top_p", 1)
    lines = compare(a, b).as_markdown().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == list(COLUMNS)
    assert rows[2][:6] == ["aime", "avg@8", "6", "3 / 1 / 2", "41.7", "47.9"]
    assert rows[2][6].startswith("+6.2 ± ")
    assert rows[3][:6] == ["amc", "avg@8", "12", "12 / 0 / 0", "0.0", "100.0"]
    assert rows[3][6:] == ["+100.0 ± 0.0", "+54.9 .. +100.0", "< 0.001", "< 0.001", "43.3"]
    assert len({len(row) for row in rows}) == 1
    assert "Holm p is corrected for 2 comparisons; the intervals are not" in "\n".join(lines)
    assert lines[-1] == "* warning: sampling.top_p: A 0.95, B 1"


def test_the_table_of_a_terminal_of_80_columns_cuts_nothing() -> None:
    from rich.console import Console

    n = 1319
    documents = (results(olympiadbench=benchmark([c] * n, greedy=[1] * n)) for c in (0, 8))
    comparison = compare(*documents, resamples=100)
    for width in (80, 200):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(comparison.as_table())
        text = captured.get()
        assert "…" not in text
        for cell in ("olympiadbench", "avg@8", "1319 / 0 / 0", "+99.6 .. +100.0", "95 %, unadjusted", "0 / 0 / 1319"):
            assert cell in text
