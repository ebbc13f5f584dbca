"""The summary as Markdown, for a terminal and as files; and the table of a design."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dgpo.comparison import Outcome, tables
from dgpo.comparison.reading import read_summary
from dgpo.comparison.statistics import smallest_difference
from dgpo.comparison.summarise import summarise
from dgpo.comparison.summary import Summary, Tuned

pytest.importorskip("scipy", reason="statistics need scipy: the extra train or eval")

Simulate = Callable[..., list[Outcome]]


@pytest.fixture
def summary(simulate: Simulate) -> Summary:
    outcomes = simulate({"grpo": 0.3, "dgpo:n=2,m=2": 0.4}, problems=5)
    outcomes[3] = replace(outcomes[3], steps=(0, 20), scores=(0.2, 0.3), diverged="non-finite")
    rates = ("1e-4", "1e-3")
    tuning = [
        Tuned(
            arm=arm,
            grid={"learning_rate": rates},
            chosen={"learning_rate": "1e-4"},
            runs=4,
            seeds=(90, 91),
            criterion="final",
        )
        for arm in ("grpo", "dgpo:n=2,m=2")
    ]
    return summarise(outcomes, baseline="grpo", tuning=tuning, cells=[("grpo", "addition", 11)], resamples=400)


def test_markdown_has_every_part(summary: Summary) -> None:
    text = tables.markdown(summary)
    assert text.startswith("2 methods on addition; baseline grpo; seeds 0-7.\n")
    assert "| grpo (baseline) | 8 | 20.0 |" in text
    assert "| 1 non-finite |" in text
    assert "as 0 from where they ended (1 run here)" in text
    assert "### Final score minus that of grpo, in points" in text
    assert "Holm p is adjusted for 1 comparison, the intervals are not" in text
    found = summary.methods[1]
    assert found.against is not None
    assert f"| {100 * found.final.value:.1f} [{100 * found.final.low:.1f}, {100 * found.final.high:.1f}] |" in text
    assert f"| {100 * found.against.final.value:+.1f} [" in text
    assert (
        "| dgpo:n=2,m=2 | learning_rate: 1e-4, 1e-3 | learning_rate = 1e-4 (end of the grid) | 4 | 90, 91 | 0 |" in text
    )
    assert "* 1 missing or unfinished, counted nowhere: grpo on addition, seed 11" in text


def test_complete_separation_is_not_certainty(simulate: Simulate) -> None:
    words = "all runs are on one side, which is not certainty"
    apart, close = (
        summarise(simulate({"grpo": 0.1, "dgpo": gain}), baseline="grpo", resamples=400) for gain in (0.7, 0.1)
    )
    assert "| 1.00 [1.00, 1.00] |" in tables.markdown(apart)
    assert words in tables.markdown(apart)
    assert words not in tables.markdown(close)


def test_tables_of_tasks(simulate: Simulate) -> None:
    outcomes = simulate({"grpo": 0.3, "dgpo": 0.4}, tasks=("addition", "reverse"))
    text = tables.markdown(summarise(outcomes, baseline="grpo", same_runs=True, resamples=400))
    assert "| method | addition | reverse |" in text
    assert "every run was evaluated on all tasks; all tasks weigh the same" in text


def test_the_tables_fit_into_a_terminal(summary: Summary) -> None:
    console = pytest.importorskip("rich.console", reason="tables for a terminal need rich").Console(
        width=80, record=True
    )
    for grid in tables.grids(summary):
        console.print(tables.table(grid))
    text = console.export_text()
    difference = summary.methods[1].against
    assert difference is not None
    assert f"{100 * difference.final.low:+.1f}..{100 * difference.final.high:+.1f}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_summary_is_read_back(summary: Summary, simulate: Simulate, tmp_path: Path) -> None:
    one_pair = summarise(simulate({"grpo": 0.3, "dgpo": 0.4}, seeds=[0]), baseline="grpo", about={"commit": "abc"})
    for number, written in enumerate((summary, one_pair)):
        tables.write(written, tmp_path / str(number))
        found = read_summary(tmp_path / str(number))
        # as JSON, which has lists for tuples
        assert json.dumps(found.as_dict()) == json.dumps(written.as_dict())
        assert tables.markdown(found) == tables.markdown(written)
        assert (found.curves, found.about) == (written.curves, written.about)


def test_what_is_no_summary_is_refused(summary: Summary, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file or directory; expected a summary.json of `dgpo compare`"):
        read_summary(tmp_path)
    document = json.loads(json.dumps(summary.as_dict()))
    curve = document["curves"][0]
    for changes, message in (
        ({"schema": "dgpo.evaluation/1"}, "schema = 'dgpo.evaluation/1'; expected"),
        ({"methods": [{}]}, "is damaged: KeyError, 'final'"),
        ({"more": 1}, "is damaged: TypeError"),
        ({"curves": [{**curve, "mean": [0.1]}]}, "lines that differ in length"),
    ):
        (tmp_path / "summary.json").write_text(json.dumps({**document, **changes}))
        with pytest.raises(ValueError, match=message):
            read_summary(tmp_path / "summary.json")


def test_files(summary: Summary, tmp_path: Path) -> None:
    document, text = tables.write(summary, tmp_path)
    assert json.loads(document.read_text(encoding="utf-8"))["baseline"] == "grpo"
    assert text.read_text(encoding="utf-8") == tables.markdown(summary)


def test_a_design_is_shown_before_its_runs() -> None:
    grid = tables.design_grid(8, 3, stds=(0.02,))
    cells = [smallest_difference(8, 0.02, comparisons=3, correlation=0.5), smallest_difference(8, 0.02, comparisons=3)]
    cells.append(smallest_difference(8, 0.02, comparisons=3, paired=False))
    assert grid.rows == [["2.0", *(f"{100 * cell:.1f}" for cell in cells)]]
    assert len(grid.caption) == 3
    few = tables.design_grid(6, 2, stds=(0.02, 0.9))
    assert few.caption[0] == "6 seeds per arm"
    assert few.rows[1] == ["90.0", "none", "none", "none"]
    # 2 x 0.0312 > 5 %
    assert "p >= 0.0312 with 6 pairs, so it finds no difference" in few.caption[-1]
