"""The page of a comparison: as text, and in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browsing import CHROMIUM, opened, traces

from dgpo.cli.errors import UserError
from dgpo.cli.report import run as run_report
from dgpo.comparison import Outcome, tables
from dgpo.comparison.summarise import summarise
from dgpo.comparison.summary import Summary
from dgpo.report.comparison import comparison_page, write_comparison_report

pytest.importorskip("scipy", reason="statistics need scipy: the extra train or eval")

ATTACK = "</script><script>window.hacked=1</script>{{data}}"


def outcomes(arms: list[str]) -> list[Outcome]:
    """Four seeds on two tasks; the last arm is the best."""
    return [
        Outcome(arm, seed, task, (0, 10, 20), (0.1, 0.2 + 0.02 * place, 0.4 + 0.1 * place + 0.01 * seed * (place - 1)))
        for task in ("addition", "reverse")
        for place, arm in enumerate(arms)
        for seed in range(4)
    ]


@pytest.fixture(scope="module")
def summary() -> Summary:
    found = outcomes(["grpo", "is", "dgpo:n=2,m=2"])
    found[1] = replace(found[1], steps=(0, 10), scores=(0.1, 0.2), diverged="non-finite")
    about = {"versions": {"dgpo": "1.2.3"}, "config": {"learning_rate": "1e-4"}}
    return summarise(found, baseline="grpo", same_runs=True, resamples=300, about=about)


@pytest.fixture(scope="module")
def folder(summary: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison")
    tables.write(summary, path)
    return path


def test_the_command_writes_the_page(folder: Path, summary: Summary, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'report.html'} (")
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text == comparison_page(summary)
    assert text.count("<script") == 3
    assert "<h1>dgpo compare: grpo, is, dgpo:n=2,m=2</h1>" in text
    # all cells of all tables, the headline and the warnings
    for grid in tables.grids(summary):
        assert f"<h3>{grid.title}</h3>" in text
        assert all(f">{cell}</td>" in text for row in grid.rows for cell in row[1:])
    assert tables.headline(summary) in text
    # few seeds, few pairs, a baseline that broke, equal scores
    assert len(tables.limits(summary)) == 4
    assert all(f"<li>{line.replace('>', '&gt;')}</li>" in text for line in tables.limits(summary))
    assert '<th scope="row"><code>versions.dgpo</code></th><td>1.2.3</td>' in text


def test_a_comparison_is_given_alone(folder: Path, tmp_path: Path) -> None:
    for more in ([str(tmp_path)], ["--eval", str(tmp_path)], ["--objective", "a:B"]):
        with pytest.raises(
            UserError, match="is a comparison, which has its own page; give no other argument but --out"
        ):
            run_report([str(folder), *more])
    (tmp_path / "summary.json").write_text('{"schema": "other/1"}')
    with pytest.raises(UserError, match=r"schema = 'other/1'; expected a summary.json of `dgpo compare`"):
        run_report([str(tmp_path)])
    # a file of that name that is no comparison's, and has no number either
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="there is nothing to report"):
        run_report([str(tmp_path)])


def test_hostile_names_stay_text() -> None:
    found = summarise(
        outcomes(["grpo", ATTACK]), baseline="grpo", same_runs=True, resamples=300, about={ATTACK: ATTACK}
    )
    text = comparison_page(found)
    assert text.count("<script") == 3
    assert "<script>window.hacked" not in text
    assert "{{data}}" in text
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block is not None
    assert json.loads(block[1])["methods"] == ["grpo", ATTACK]


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(browser, summary, tmp_path_factory):
    path = tmp_path_factory.mktemp("page")
    tables.write(summary, path)
    problems: list[str] = []
    page = opened(browser, write_comparison_report(path, path / "report.html"), problems)
    yield page
    assert problems == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_curves_bands_and_differences_are_drawn(shown, summary: Summary) -> None:
    ids = shown.eval_on_selector_all(".plot", "boxes => boxes.map(box => box.id)")
    assert ids == ["plot-task-0", "plot-task-1", "plot-differences"]
    found = traces(shown, "plot-task-0")
    assert [trace["meta"]["part"] for trace in found] == ["band", "band", "mean"] * 3
    for place, curve in enumerate(summary.curves[:3]):
        low, high, mean = found[3 * place : 3 * place + 3]
        assert mean["name"] == curve.arm
        assert mean["x"] == list(curve.steps)
        for trace, values in ((low, curve.low), (high, curve.high), (mean, curve.mean)):
            assert trace["y"] == pytest.approx([100 * value for value in values])
    colours = shown.eval_on_selector(
        "#plot-task-0", "box => box.data.filter(t => t.meta.part === 'mean').map(t => t.line.color)"
    )
    dots = shown.eval_on_selector("#plot-differences", "box => box.data.map(t => [t.x[0], t.marker.color])")
    assert len(set(colours)) == 3
    assert [colour for _, colour in dots] == colours[1:]
    differences = [method.against for method in summary.methods[1:]]
    assert [x for x, _ in dots] == pytest.approx([100 * one.final.value for one in differences if one])
    assert "points" in shown.get_attribute("#plot-differences", "aria-label")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_methods_and_runs_can_be_toggled(shown, summary: Summary) -> None:
    shown.uncheck("#methods input >> nth=0")
    assert {t["meta"]["method"] for t in traces(shown, "plot-task-1") if t["visible"]} == {"is", "dgpo:n=2,m=2"}
    shown.check("#methods input >> nth=0")
    shown.check("#every-run")
    runs = [t for t in traces(shown, "plot-task-0") if t["meta"]["part"] == "run"]
    assert len(runs) == 12
    # the run that broke is at 0 where it has no score
    assert next(t for t in runs if (t["meta"]["method"], t["meta"]["seed"]) == ("grpo", 1))["y"] == [10, 20, 0]
    shown.uncheck("#every-run")
    shown.click("#theme")
    assert "light" in shown.inner_text("#theme")
    shown.click("#theme")
