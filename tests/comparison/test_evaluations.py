"""From the files of a run to its outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgpo.comparison.cells import CellFolder, Progress
from dgpo.comparison.evaluations import outcomes, scores_of, starting_scores
from dgpo.comparison.study import Arm, Study

ARMS = tuple(Arm(label=name, options={"objective": name}) for name in ("grpo", "dgpo"))
STUDY = Study(name="s", options={}, arms=ARMS, seeds=(0,), baseline="grpo", updates=10, every=4)


def evaluated(folder: CellFolder, step: int, correct: dict[str, int], *, n: int = 4, task: str = "addition") -> None:
    rows: list[dict[str, Any]] = [{"id": key, "n": n, "correct": of, "greedy": None} for key, of in correct.items()]
    document = {"schema": "dgpo.evaluation/1", "benchmarks": {task: {"problems": len(rows), "per_problem": rows}}}
    file = folder.train / "eval" / str(step) / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(document))


def logged(folder: CellFolder, **last: object) -> None:
    folder.record.mkdir(parents=True)
    lines = [{"step": 1, "loss": 0.1, "entropy": 1.0}, {"step": 10, "loss": 0.1, "entropy": 0.9, **last}]
    (folder.record / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def pair(tmp_path: Path) -> list[CellFolder]:
    """Two runs with all evaluations; of the first also one after update 7, where it was stopped once."""
    folders = [CellFolder(tmp_path, cell) for cell in STUDY.final_cells({"grpo": {}, "dgpo": {}})]
    for folder in folders:
        for step, right in ((0, 1), (4, 2), (8, 3), (10, 4)):
            evaluated(folder, step, {"1+1": right, "2+2": 0})
        logged(folder)
        folder.save(Progress(state="finished", code=0, starts=1))
    evaluated(folders[0], 7, {"1+1": 0, "2+2": 0})
    return folders


def test_a_finished_run(pair: list[CellFolder]) -> None:
    start, others = starting_scores(pair)
    assert others == []
    (found,) = outcomes(STUDY, pair[0], start)
    assert (found.arm, found.seed, found.task) == ("grpo", 0, "addition")
    # not 7, which no other run has
    assert found.steps == (0, 4, 8, 10)
    assert found.scores == (0.125, 0.25, 0.375, 0.5)
    assert found.problems == {"1+1": 1.0, "2+2": 0.0}
    assert found.diverged is None


def test_a_run_that_may_still_go_on_has_none(pair: list[CellFolder]) -> None:
    start, _ = starting_scores(pair)
    for state in ("running", "stopped", "waiting"):
        pair[0].save(Progress(state=state))  # type: ignore[arg-type]
        assert outcomes(STUDY, pair[0], start) == []


def test_a_failed_run_has_what_it_got_to(pair: list[CellFolder], tmp_path: Path) -> None:
    pair[1].save(Progress(state="failed", code=1, starts=1))
    (pair[1].train / "eval" / "10" / "results.json").unlink()
    start, _ = starting_scores(pair)
    (found,) = outcomes(STUDY, pair[1], start)
    assert (found.steps, found.diverged) == ((0, 4, 8), "failed")
    # before its first evaluation: all runs start alike
    for step in (0, 4, 8):
        (pair[1].train / "eval" / str(step) / "results.json").unlink()
    (found,) = outcomes(STUDY, pair[1], start)
    assert (found.steps, found.scores, found.diverged) == ((0,), (0.125,), "failed")


def test_a_run_that_diverged(pair: list[CellFolder]) -> None:
    (pair[0].record / "metrics.jsonl").unlink()
    pair[0].record.rmdir()
    logged(pair[0], grad_norm="nan")
    start, _ = starting_scores(pair)
    assert outcomes(STUDY, pair[0], start)[0].diverged == "non-finite"
    assert pair[0].log()["grad_norm"].broken == (10,)


def test_runs_that_do_not_start_alike_are_named(pair: list[CellFolder]) -> None:
    (pair[1].train / "eval" / "0" / "results.json").unlink()
    (pair[1].train / "eval" / "0").rmdir()
    evaluated(pair[1], 0, {"1+1": 2, "2+2": 0})
    assert starting_scores(pair)[1] == ["dgpo, seed 0"]


def test_a_missing_last_evaluation_is_an_error(pair: list[CellFolder]) -> None:
    (pair[0].train / "eval" / "10" / "results.json").unlink()
    start, _ = starting_scores(pair)
    with pytest.raises(ValueError, match="is finished, but has no evaluation of update 10"):
        outcomes(STUDY, pair[0], start)


def test_greedy_scores_where_there_are_no_samples(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": 0, "correct": 0, "greedy": 1}, {"id": "b", "n": 0, "correct": 0, "greedy": 0}]
    document = {"schema": "dgpo.evaluation/1", "benchmarks": {"addition": {"problems": 2, "per_problem": rows}}}
    (tmp_path / "results.json").write_text(json.dumps(document))
    assert scores_of(tmp_path) == {"addition": {"a": 1.0, "b": 0.0}}
