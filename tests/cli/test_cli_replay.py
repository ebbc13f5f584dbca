"""`dgpo replay` on a run folder made here: the tables, the file, and one clear error for wrong input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli.errors import UserError
from dgpo.cli.replay import parse
from dgpo.cli.replay import run as run_replay
from dgpo.diagnostics import load, record
from dgpo.diagnostics.naming import label
from dgpo.diagnostics.replay import replay
from dgpo.objectives import OBJECTIVES, make


@pytest.fixture
def folder(tmp_path: Path, make_batch: Callable[..., Any]) -> Path:
    for update in range(1, 9):
        record(tmp_path / "run", make_batch(spread=0.2 * (update % 4), seed=update).tokens(), update=update)
    about = {"schema": "dgpo.run/1", "objective": {"name": "dgpo", "n": 2}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    return tmp_path / "run"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command's own `run`; what it printed."""

    def call(*words: object) -> str:
        capsys.readouterr()
        assert run_replay([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return call


def test_every_objective_is_in_both_tables_and_in_the_file(call: Callable[..., str], folder: Path) -> None:
    out = call(folder)
    lines = out.splitlines()
    assert lines[0].startswith("The weights of dgpo:n=2 are ")
    assert any("8 updates (1 to 8)" in line for line in lines)
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    for name in OBJECTIVES:
        assert sum(line.split()[:1] == [name] for line in lines) == 2, name
    assert sum(line.startswith("dgpo:n=2 *") for line in lines) == 2
    assert "step: E|A|wN; factor: scales the step to that of dgpo:n=2" in [line.strip() for line in lines]
    assert any(line.split()[-1:] == ["top"] for line in lines), "a header breaks between words"
    assert "the bound 1 - π on the norm" in " ".join(out.split())
    assert json.loads((folder / "replay.json").read_text()) == json.loads(json.dumps(replay(load(folder)).as_dict()))


def test_the_cells(call: Callable[..., str], folder: Path) -> None:
    found = replay(load(folder), "grpo", updates=[3, 4, 5])
    row = next(row for row in found.rows if row.label == "grpo")
    lines = call(folder, "--objectives", "grpo", "--updates", "3:5").splitlines()
    assert any("3 updates (3 to 5)" in line for line in lines)
    cells = [line.split()[1:] for line in lines if line.split()[:1] == ["grpo"]]
    assert row.factor is not None
    assert row.zero_fraction != row.top_percent_share
    assert cells[0] == [
        f"{100 * row.bias:.2f}",
        f"{100 * row.bias_equal_step:.1f}",
        f"{row.cosine:.3f}",
        f"{row.step_size:.3g}",
        f"{row.factor:.3g}",
        f"{row.ess:.2f}",
        f"{100 * row.zero_fraction:.1f}",
        f"{row.weight_max:.3g}",
        f"{100 * row.top_percent_share:.1f}",
    ]
    assert cells[1] == [f"{100 * share:.1f}" for share in row.gradient.values()]
    tokens = next(line.split()[1:] for line in lines if line.startswith("tokens"))
    assert tokens == [f"{100 * share:.1f}" for share in found.fraction.values()]


@pytest.mark.parametrize(
    ("text", "updates"), [("3:5", [3, 4, 5]), ("7:", [7, 8]), (":2", [1, 2]), ("4", [4]), ("6:60", [6, 7, 8])]
)
def test_ranges_and_out(call: Callable[..., str], folder: Path, tmp_path: Path, text: str, updates: list[int]) -> None:
    out = tmp_path / "new" / "replay.json"
    assert str(out) in call(folder, "--objectives", "maspo", "dgpo:n=3,m=1", "--updates", text, "--out", out)
    read = json.loads(out.read_text())
    assert read["updates"] == updates
    assert {row["label"] for row in read["rows"]} == {"maspo", "dgpo:n=3,m=1", "dgpo:n=2"}
    assert not (folder / "replay.json").exists()


def test_words_are_objectives() -> None:
    assert parse("dgpo:n=2,m=2.5, eps_high=0.28") == [make("dgpo", n=2, m=2.5, eps_high=0.28)]
    assert parse("grpo:dual_clip=None") == [make("grpo")]
    assert parse("all") == [make(name) for name in OBJECTIVES]
    for objective in (make("cispo", cap=math.inf), make("dgpo", n=3, right_cap=2.0), make("gspo")):
        assert parse(label(objective)) == [objective]


def test_wrong_input(folder: Path, tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    def fails(*words: object) -> str:
        with pytest.raises(UserError) as error:
            run_replay([str(word) for word in words])
        return str(error.value)

    assert "unknown objective 'dgop', did you mean 'dgpo'?" in fails(folder, "--objectives", "dgop")
    assert "the preset 'dapo'" in fails(folder, "--objectives", "dapo")
    assert "objective 'dgpo' has no field 'nn', did you mean 'n'?" in fails(folder, "--objectives", "dgpo:nn=2")
    assert "'n' in 'dgpo:n' has no value" in fails(folder, "--objectives", "dgpo:n")
    assert "n = 'two' is not allowed" in fails(folder, "--objectives", "dgpo:n=two")
    assert "'3:x' is not a range" in fails(folder, "--updates", "3:x")
    assert "no update of --updates 20:30 was recorded; recorded: 1 to 8" in fails(folder, "--updates", "20:30")
    assert "is not a folder" in fails(tmp_path / "nowhere")
    assert "nothing was recorded there" in fails(tmp_path)
    (folder / "under").write_text("")
    assert "under" in fails(folder, "--updates", "1", "--out", folder / "under" / "file.json")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text("")
    assert "no recorded tokens" in fails(tmp_path / "bare")


def test_a_log_alone_is_for_the_doctor(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"log_history": []}')
    (folder / "metrics.jsonl").write_text("")
    for path in (checkpoint, checkpoint / "trainer_state.json", folder / "metrics.jsonl"):
        with pytest.raises(UserError, match="which `dgpo doctor` reads"):
            run_replay([str(path)])


def test_what_is_missing_is_said(call: Callable[..., str], folder: Path) -> None:
    (folder / "run.json").write_text('{"objective": {"name": "of_a_plugin", "x": 1}}')
    (folder / "tokens" / "update-000003.parquet").write_bytes(b"no parquet")
    with pytest.warns(UserWarning, match="left out"):
        out = " ".join(call(folder, "--objectives", "dgpo", "bapo").split())
    assert "7 updates (1 to 8)" in out
    assert "of_a_plugin, is not registered here" in out
    assert "missing or damaged: updates 3" in out
    assert "damaged files: update-000003.parquet" in out
    assert "factor: scales the step to that of unclipped importance sampling" in out
    assert "in training on every micro-batch: bapo." in out


def test_names_are_not_broken(call: Callable[..., str], folder: Path) -> None:
    assert sum(line.startswith("bapo_algorithm1 ") for line in call(folder).splitlines()) == 2
