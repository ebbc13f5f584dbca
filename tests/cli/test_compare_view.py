"""What `dgpo compare` shows while it runs, on a terminal and elsewhere, and the time that it says is left."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from dgpo.cli.compare_view import View, seconds_left
from dgpo.comparison.cells import CellFolder, Progress
from dgpo.comparison.study import Arm, Study

ARMS = tuple(Arm(label=name, options={"objective": name}) for name in ("grpo", "dgpo"))
STUDY = Study(name="tea", options={}, arms=ARMS, seeds=(0, 1), baseline="grpo", updates=100, every=50)


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """Of four runs one is finished, one runs for 30 s and has made 40 updates, one failed, one waits; two at a time."""
    folders = [CellFolder(tmp_path, cell) for cell in STUDY.final_cells({"grpo": {}, "dgpo": {}})]
    names = [folder.cell.name for folder in folders]
    folders[1].record.mkdir(parents=True)
    (folders[1].record / "metrics.jsonl").write_text(json.dumps({"step": 40, "loss": 0.1}) + "\n")
    folders[2].log_file.parent.mkdir(parents=True)
    folders[2].log_file.write_text("Traceback\nValueError: [bold]no[/bold]\n")
    states = [
        Progress(state="finished", code=0, seconds=110.0, starts=1),
        Progress(state="running", starts=1),
        Progress(state="failed", code=1, seconds=3.0, starts=1),
        Progress(),
    ]
    return SimpleNamespace(
        folders=folders, progress=dict(zip(names, states, strict=True)), running={names[1]: 30.0}, jobs=2
    )


def test_time_left(runner: Any) -> None:
    """140 s for 140 updates; 60 and 100 are missing, the failed run is not tried again: 160 s at two at a time."""
    assert seconds_left(STUDY, runner) == pytest.approx(80.0)
    assert seconds_left(STUDY, runner, later=3) == pytest.approx(80.0 + 150.0)
    # of a run that was continued the time of this process says nothing about all of its updates
    name = runner.folders[1].cell.name
    runner.progress[name] = Progress(state="running", starts=2)
    assert seconds_left(STUDY, runner) == pytest.approx(160 * 1.1 / 2)
    runner.progress = dict.fromkeys(runner.progress, Progress())
    runner.running = {}
    assert seconds_left(STUDY, runner) is None


def view(*, terminal: bool) -> tuple[View, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    return View(STUDY, console, clock=lambda: 10.0), text


def test_lines_without_a_terminal(runner: Any) -> None:
    shown, text = view(terminal=False)
    with shown:
        shown.began(runner.folders[1], False)
        shown.ended(runner.folders[2], runner.progress[runner.folders[2].cell.name])
        shown.tick(runner)
        shown.tick(runner)
        shown.stopping(1, True)
    lines = text.getvalue().splitlines()
    assert lines[0] == "begun: dgpo, seed 0"
    assert lines[1].startswith("failed: grpo, seed 1 (exit code 1); the others go on. The end of ")
    # what a log says is not markup
    assert lines[2:4] == ["    Traceback", "    ValueError: [bold]no[/bold]"]
    # once
    assert lines[4:] == ["about 80 s left for 3 runs", "stopping: 1 run will save a checkpoint; press again to kill"]
    assert [folder.cell.name for folder in shown.failed] == ["final/grpo/seed-1"]


def test_a_table_on_a_terminal(runner: Any) -> None:
    shown, text = view(terminal=True)
    with shown:
        shown.tick(runner)
    for words in ("tea", "✓✗", "▶·", "40/100", "1 of 4 runs finished, 1 failed, about 80 s left"):
        assert words in text.getvalue(), text.getvalue()


def test_a_terminal_that_is_gone_stops_nothing(runner: Any) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    shown = View(STUDY, Console(file=Gone(), force_terminal=False), clock=lambda: 10.0)
    with shown:
        shown.began(runner.folders[1], False)
        shown.tick(runner)
