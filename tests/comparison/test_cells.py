"""The folder of a run: its options, how far it got, and what it last said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli.yaml_file import values
from dgpo.comparison.cells import LAST_LINES, CellFolder, Progress
from dgpo.comparison.study import Cell


def cell(**options: Any) -> Cell:
    options = {"learning_rate": "1e-4", "eval_benchmarks": ["addition"], "seed": "3", **options}
    return Cell(phase="final", arm="dgpo", setting={"learning_rate": "1e-4"}, seed=3, options=options)


def test_progress_is_what_was_saved(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell())
    assert folder.progress() == Progress()
    saved = Progress(state="failed", code=-9, seconds=12.5, starts=2)
    folder.save(saved)
    assert CellFolder(tmp_path, cell()).progress() == saved


def test_a_run_with_other_options_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell())
    folder.check()
    folder.save(Progress())
    # the same number, written otherwise
    CellFolder(tmp_path, cell(learning_rate="0.0001")).check()
    with pytest.raises(ValueError, match=re.escape("Different (there -> now): max_steps: null -> 100.")):
        CellFolder(tmp_path, cell(max_steps="100")).check()
    other = Cell(phase="final", arm="dgpo", setting={"learning_rate": "3e-4"}, seed=3, options=cell().options)
    with pytest.raises(ValueError, match=re.escape("setting.learning_rate: 0.0001 -> 0.0003")):
        CellFolder(tmp_path, other).check()


def test_secrets_do_not_reach_the_record(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell(hub_token="hf_abcdefghijkl"))
    folder.save(Progress())
    assert "hf_abc" not in (folder.path / "cell.json").read_text()
    folder.check()


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell())
    folder.path.mkdir(parents=True)
    (folder.path / "cell.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a file of `dgpo compare`"):
        folder.progress()


def test_the_config_is_read_as_it_was_given(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell(model_revision="1.10", report_to=None))
    folder.write_config()
    read = values(folder.config)
    # 1.10 as a number would become 1.1
    assert read["model_revision"] == "1.10"
    assert read["report_to"] is None
    assert read["eval_benchmarks"] == ["addition"]
    assert (read["output_dir"], read["record"]) == (str(folder.train), str(folder.record))


def test_step_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell())
    assert folder.step() == 0
    folder.record.mkdir(parents=True)
    lines = [{"event": "begin", "step": 0}, *({"step": step, "loss": 0.1} for step in range(1, 4000))]
    text = "\n".join(map(json.dumps, lines)) + "\n"
    (folder.record / "metrics.jsonl").write_text(text)
    assert folder.step() == 3999
    (folder.record / "metrics.jsonl").write_text(text + '{"step": 40')
    assert folder.step() == 3999
    assert folder.log()["loss"].steps[-1] == 3999


def test_last_words_leave_out_what_a_progress_bar_overwrote(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path, cell())
    assert folder.last_words() == []
    folder.path.mkdir(parents=True)
    folder.log_file.write_text("first\n10 %\r50 %\r100 %\n\n\x1b[31mred\n" + "x\n" * (LAST_LINES - 2))
    assert folder.last_words()[:2] == ["100 %", "\\x1b[31mred"]
    assert len(folder.last_words()) == LAST_LINES
