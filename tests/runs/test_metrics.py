"""Metrics in every format: one reader, one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dgpo import TokenBatch
from dgpo.diagnostics import load, record
from dgpo.runs.reading import read_log
from dgpo.runs.run import load_any

LINES = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}]


def test_every_format_is_the_same_log(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 2, "log_history": LINES}, indent=2))
    run = tmp_path / "record"
    run.mkdir()
    (run / "metrics.jsonl").write_text(lines.read_text())
    assert read_log(lines).lines == read_log(state).lines == LINES
    for source in (lines, checkpoint, state, run, str(run)):
        found = load_any(source)
        assert found.metrics == LINES
        assert found.log["reward"].values == (0.5, 0.75)
        assert (found.info, found.updates, found.footers()) == ({}, [], {})


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_line_feeds_end_a_line(tmp_path: Path, separator: str) -> None:
    lines = [{"step": 1, "note": f"a{separator}b"}, {"step": 2}]
    file = tmp_path / "lines.jsonl"
    file.write_bytes("".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines).encode())
    assert [line["step"] for line in read_log(file).lines] == [1, 2]


def test_a_log_alone_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": LINES}))
    for path in (tmp_path, tmp_path / "trainer_state.json"):
        with pytest.raises(ValueError, match="is a log or a checkpoint, which `dgpo doctor` reads"):
            load(path)


def test_footers_say_what_the_files_hold(tmp_path: Path) -> None:
    old = torch.zeros(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    for rank in (0, 1):
        record(tmp_path, TokenBatch(old, old, torch.ones(2), mask), update=5, generation=2, rank=rank, world_size=2)
    (tmp_path / "tokens" / "update-000006.parquet").write_bytes(b"")
    found = load(tmp_path).footers()
    assert [(one.rows, one.rank, one.world_size, one.generation) for one in found[5]] == [(3, 0, 2, 2), (3, 1, 2, 2)]
    assert found[6] == []
