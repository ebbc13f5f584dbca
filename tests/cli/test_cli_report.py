"""`dgpo report` and `dgpo plot` on run folders made here: the files, and one clear error for wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli.errors import UserError
from dgpo.cli.plot import run as run_plot
from dgpo.cli.report import run as run_report
from dgpo.diagnostics import record
from dgpo.report.figures import KINDS


@pytest.fixture
def folder(tmp_path: Path, make_batch: Callable[..., Any]) -> Path:
    path = tmp_path / "run"
    for update in range(1, 9):
        record(path, make_batch(spread=0.2 * (update % 4), seed=update).tokens(), update=update)
    about = {"schema": "dgpo.run/1", "objective": {"name": "dgpo", "n": 2}, "updates_per_generation": 4}
    (path / "run.json").write_text(json.dumps(about))
    lines = [{"step": step, "reward": step / 10, "entropy": 1 / step} for step in range(1, 9)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A run without tokens."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')
    return tmp_path / "log"


def test_the_page_lies_in_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_report([str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'report.html'} (")
    assert "dgpo:n=2" in (folder / "report.html").read_text()


def test_several_runs_and_where_to(folder: Path, log: Path, tmp_path: Path) -> None:
    assert run_report([str(folder), str(log), "--out", str(tmp_path / "a.html")]) == 0
    assert "<h1>dgpo report: run, log</h1>" in (tmp_path / "a.html").read_text()
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "ending", "start"),
    [*((kind, ".svg", b"<?xml") for kind in KINDS), ("curves", ".pdf", b"%PDF"), ("curves", ".png", b"\x89PNG")],
)
def test_every_figure_and_every_format(kind: str, ending: str, start: bytes, folder: Path, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        out = tmp_path / "figures" / f"{name}{ending}"
        assert run_plot([kind, str(folder), "--out", str(out)]) == 0
        found.append(out.read_bytes())
    assert found[0].startswith(start)
    assert found[0] == found[1]
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_what_the_figures_show(folder: Path, log: Path, tmp_path: Path) -> None:
    def texts(*words: str) -> str:
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none"}):
            assert run_plot([*words, "--out", str(tmp_path / "figure.svg")]) == 0
        return (tmp_path / "figure.svg").read_text()

    text = texts("weights", str(folder), "--objectives", "grpo", "cispo")
    assert ">grpo<" in text
    assert ">cispo<" in text
    assert ">dgpo:n=2<" in texts("histogram", str(folder))
    text = texts("curves", str(folder), str(log))
    for words in ("Reward", "Entropy", "update", "nats per token", "run", "log"):
        assert f">{words}<" in text
    assert ">reverse right<" in texts("regions", str(folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}/nowhere"], "does not exist"),
        (["{folder}", "{folder}"], "given twice"),
        (["{folder}", "--eval", "{folder}"], "given twice"),
        (["{folder}", "--eval", "{folder}/tokens"], "holds no results.json"),
        (["{folder}", "--out", "{folder}"], "directory"),
    ],
)
def test_wrong_input_of_report(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_report([word.format(folder=folder) for word in words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights", "{folder}", "--out", "figure.gif"], r"ending '\.gif'; expected one of \.svg"),
        (["curves", "{folder}/nowhere", "--out", "figure.svg"], "is not a folder"),
        (["histogram", "{log}", "--out", "figure.svg"], "no recorded tokens"),
        (["regions", "{log}", "--out", "figure.svg"], "its log has no regions"),
        (["weights", "{folder}", "--out", "figure.svg", "--objectives", "dgop"], "dgpo"),
    ],
)
def test_wrong_input_of_plot(folder: Path, log: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_plot([word.format(folder=folder, log=log) for word in words])


def test_no_metrics_no_curves(folder: Path, tmp_path: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no metrics were recorded"):
        run_plot(["curves", str(folder), "--out", str(tmp_path / "figure.svg")])


def test_a_log_alone_is_for_the_doctor_and_the_report(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"step": 1, "reward": 0.5}]}')
    out, page = str(tmp_path / "figure.svg"), tmp_path / "page.html"
    for path in (tmp_path, tmp_path / "trainer_state.json"):
        assert run_report([str(path), "--out", str(page)]) == 0
        assert "<dt>updates</dt><dd>1</dd>" in page.read_text(encoding="utf-8")
        with pytest.raises(UserError, match="which `dgpo doctor` reads"):
            run_plot(["curves", str(path), "--out", out])


def test_an_objective_that_is_not_registered_here(folder: Path, tmp_path: Path) -> None:
    (folder / "run.json").write_text('{"objective": {"name": "of_a_plugin"}, "updates_per_generation": 4}')
    assert run_report([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "of_a_plugin (not registered where this page was written)" in page
    assert "of_a_plugin, which it was trained with, is not registered here" in page
    for kind in KINDS:
        assert run_plot([kind, str(folder), "--out", str(tmp_path / f"{kind}.svg")]) == 0
