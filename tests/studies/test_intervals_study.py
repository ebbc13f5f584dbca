"""studies/intervals: its page and docs/evaluation.md say what its results say, and its cells can be run again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "intervals"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("intervals_study", STUDY / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(study):
    return study.load()


def cells(results, **chosen):
    return [cell for cell in results["one"] + results["two"] if chosen.items() <= cell.items()]


def test_the_page_has_the_tables_of_the_results(study, results):
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    assert page.endswith(f"<!-- tables -->\n\n{study.table(results)}\n")


def test_the_documentation_says_the_worst_cells(study, results):
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    one, two = study.CHOSEN
    assert study.sentence_of_one(results) in page
    assert study.sentence_of_two(results) in page
    assert study.summary(results["one"], one)["min"] > 0.92
    equal = [cell for cell in results["two"] if cell["change"] == "equal"]
    assert study.summary(equal, two)["min"] > 0.93


def test_the_chosen_is_the_best_of_its_kind_and_the_old_one_is_not(study, results):
    worst = {method: study.summary(results["one"], method)["min"] for method in study.ONE}
    assert max(worst, key=worst.get) == study.CHOSEN[0]
    assert worst["percentile bootstrap"] < 0.5


@pytest.mark.parametrize(
    "place", [(10, 0.02, "few", 8), (30, 0.09, "0.3", 32), (30, 0.98, "0.9", 1), (100, 0.91, "few", 32)]
)
def test_cells_of_one_model(study, results, place):
    """Run again with fewer trials, by the function that evaluations use."""
    trials = 1000
    for cell in study.one_cell(*place, trials=trials):
        chosen = {name: cell[name] for name in ("problems", "mean", "spread", "samples", "figure")}
        (recorded,) = cells(results, **chosen)
        assert cell["truth"] == recorded["truth"]
        for method in ("pseudo-problems, t", "Miller with t"):
            share = recorded["coverage"][method]
            slack = 4 * (max(share * (1 - share), 0.01) / trials) ** 0.5
            assert cell["coverage"][method] == pytest.approx(share, abs=slack)


@pytest.mark.parametrize("change", ["equal", "gain", "few gain"])
def test_cells_of_two_models(study, results, change):
    cell = study.two_cell(30, 0.09, "0.3", 32, change, trials=1000)
    (recorded,) = cells(results, problems=30, mean=0.09, spread="0.3", samples=32, change=change)
    share = recorded["coverage"]["pseudo-problems ±h, t"]
    slack = 4 * (max(share * (1 - share), 0.01) / 1000) ** 0.5
    assert cell["coverage"]["pseudo-problems ±h, t"] == pytest.approx(share, abs=slack)


@pytest.mark.soak
@pytest.mark.parametrize("place", [(30, 0.09, 32), (30, 0.91, 32), (30, 0.02, 1), (100, 0.98, 8)])
@pytest.mark.parametrize("spread", ["0", "0.3", "0.9", "few"])
def test_coverage_with_many_trials(study, results, place, spread):
    problems, mean, samples = place
    for cell in study.one_cell(problems, mean, spread, samples, trials=40_000):
        (recorded,) = cells(
            results, **{name: cell[name] for name in ("problems", "mean", "spread", "samples", "figure")}
        )
        found, share = cell["coverage"]["pseudo-problems, t"], recorded["coverage"]["pseudo-problems, t"]
        assert found == pytest.approx(share, abs=4 * (0.05 / results["settings"]["trials"]) ** 0.5)
        assert found > 0.93
