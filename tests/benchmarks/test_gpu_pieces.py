"""benchmarks/gpu.sh: the table of its pieces, and what becomes of a piece that does not end as it should."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from gpu import __main__ as driver
from gpu import piece as piece_module
from gpu.pieces import LONGEST, PIECES, TOTAL, Piece, allowance

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"

SHARED = {"__init__", "__main__", "piece", "pieces", "problem", "peers", "rig", "unpack", "learning"}


def test_every_piece_has_a_file_and_every_file_is_a_piece_or_shared() -> None:
    names = [piece.name for piece in PIECES]
    assert len(set(names)) == len(names)
    assert set(names) | SHARED == {file.stem for file in FOLDER.glob("*.py")}
    for name in names:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert "def measure(found: Findings) -> None:" in text, name
        assert text.rstrip().endswith('if __name__ == "__main__":\n    sys.exit(run(measure))') or "also=" in text, name


def names_of(file: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        else:
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


def test_what_pieces_take_from_scripts_and_studies_is_there() -> None:
    """Only a rehearsal imports most of the pieces, and it is long."""
    scripts = {"atlas": ROOT / "studies" / "atlas", "real_model": ROOT / "studies" / "real_model"}
    taken = 0
    for piece in FOLDER.glob("*.py"):
        text = piece.read_text(encoding="utf-8")
        folders = [ROOT / "benchmarks", *(folder for name, folder in scripts.items() if name in text)]
        for node in ast.parse(text).body:
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            local = [file for folder in folders if (file := folder / f"{node.module}.py").is_file()]
            if not local:
                assert importlib.util.find_spec(node.module.partition(".")[0]), f"{piece.name}: {node.module}"
                continue
            wanted = {alias.name for alias in node.names}
            assert wanted <= names_of(local[0]), f"{piece.name}: {wanted - names_of(local[0])} of {local[0]}"
            taken += 1
    assert taken > 5


def test_the_limits_fit_into_ten_minutes() -> None:
    assert sum(piece.seconds for piece in PIECES) <= TOTAL < 600
    assert max(piece.seconds for piece in PIECES) <= LONGEST == 120


def test_a_piece_gets_its_own_seconds_and_one_that_grows_what_is_left_over() -> None:
    fixed = Piece(name="a", part="right", question="", seconds=40)
    growing = Piece(name="b", part="learns", question="", seconds=40, grows=True)
    assert allowance(fixed, left=500, later=100) == 40
    assert allowance(growing, left=500, later=100) == LONGEST
    assert allowance(growing, left=150, later=100) == 50
    assert allowance(growing, left=120, later=100) == 40
    assert allowance(fixed, left=25, later=100) == allowance(growing, left=25, later=100) == 25


def run_one(tmp_path: Path, name: str, seconds: float) -> dict:
    return driver.one(Piece(name=name, part="right", question="", seconds=seconds), tmp_path, seconds)


def test_a_process_that_crashes_or_says_nothing_has_failed(tmp_path: Path) -> None:
    """`pieces` is a module that ends at once with status 0; the other one does not exist."""
    silent = run_one(tmp_path, "pieces", 30)
    assert silent["status"] == driver.FAILED
    assert silent["failures"] == ["the process ended with status 0 and without a result"]
    crashed = run_one(tmp_path, "no_such_piece", 30)
    assert crashed["status"] == driver.FAILED
    assert "status 1" in crashed["failures"][0]
    assert "no_such_piece" in crashed["failures"][0]


def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    late = run_one(tmp_path, "head", 0.05)
    assert late["status"] == driver.FAILED
    assert late["failures"][0].startswith("not finished after")


def result(**changes: object) -> dict:
    code = {"benchmarks/gpu/pieces.py": piece_module.digest(FOLDER / "pieces.py")}
    here = {"hardware": {"device": "X"}, "versions": {"torch": "1"}}
    return {"status": driver.PASSED, "rehearsal": False, "code": code, **here, **changes}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"status": driver.FAILED}, "it has not passed"),
        ({"status": driver.SKIPPED}, "it has not passed"),
        ({"rehearsal": True}, "it was run elsewhere"),
        ({"hardware": {"device": "Y"}}, "it was run elsewhere"),
        ({"versions": {"torch": "2"}}, "it was run elsewhere"),
        ({"code": {"benchmarks/gpu/pieces.py": "0"}}, "benchmarks/gpu/pieces.py has changed"),
        ({"code": {"benchmarks/gpu/gone.py": "0"}}, "benchmarks/gpu/gone.py has changed"),
    ],
)
def test_what_runs_again(monkeypatch: pytest.MonkeyPatch, changes: dict, why: str | None) -> None:
    monkeypatch.setattr(driver, "REHEARSAL", False)
    assert driver.stale(result(**changes), result()) == why


def test_findings_are_written_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    found = piece_module.Findings("x", file, seconds=60, also=("benchmarks/gpu/peers.py",))
    found.row(case="a", ms=float("nan"), nested={"rounds": [1.0, float("inf")]})
    with found.part("second part"):
        raise ZeroDivisionError("of nothing")
    with found.part("third part"):
        raise piece_module.NotPossible("no model at hand")
    found.check(True, "not said")
    assert json.loads(file.read_text(encoding="utf-8"))["code"] == {}
    assert json.loads(file.read_text(encoding="utf-8"))["complete"] is False
    found.save(complete=True)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["rows"][0] == {"case": "a", "ms": "nan", "nested": {"rounds": [1.0, "inf"]}}
    assert document["rows"][1] == {"part": "third part", "not_possible": "no model at hand"}
    assert document["failures"] == ["second part: ZeroDivisionError('of nothing')"]
    assert document["complete"] is True
    assert {"benchmarks/gpu/peers.py", "benchmarks/gpu/piece.py", "src/dgpo/files.py"} <= document["code"].keys()
    assert "FAILED: second part" in capsys.readouterr().out


def test_the_script_lists_its_pieces() -> None:
    script = [str(ROOT / "benchmarks" / "gpu.sh"), "--list"]
    environment = {**os.environ, "PYTHON": sys.executable, "COLUMNS": "200"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for piece in PIECES:
        assert piece.name in done.stdout


def test_folders_are_named_from_where_the_script_is_called(tmp_path: Path) -> None:
    """Pieces run in another folder, so that a relative path would lead them elsewhere."""
    (tmp_path / "model").mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$GPU_MODEL"\n')
    python.chmod(0o755)
    script = [str(ROOT / "benchmarks" / "gpu.sh"), "out"]
    for folder, code, out, error in (
        ("model", 0, f"{tmp_path}/model\n", ""),
        ("nowhere", 2, "", "gpu.sh: GPU_MODEL = 'nowhere': no such folder\n"),
    ):
        environment = {**os.environ, "PYTHON": str(python), "GPU_MODEL": folder}
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (code, out, error)


def test_an_interpreter_that_cannot_run_the_pieces_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "environment", lambda: {**os.environ, "PYTHONPATH": str(ROOT / "docs")})
    assert driver.about() is None
    said = capfd.readouterr().err
    assert "No module named gpu" in said.replace("'", "")
    assert f"{sys.executable} cannot run the pieces" in said


@pytest.mark.parametrize(
    ("rehearsal", "given", "used"), [(False, None, "0"), (False, "3", "3"), (False, "2,0", "2"), (True, "2,0", "")]
)
def test_a_piece_sees_one_gpu(monkeypatch: pytest.MonkeyPatch, rehearsal: bool, given: str | None, used: str) -> None:
    monkeypatch.setattr(driver, "REHEARSAL", rehearsal)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert driver.environment()["CUDA_VISIBLE_DEVICES"] == used


def test_only_our_own_trainer_must_not_run_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu import steps

    def full() -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    names = (steps.STOCK, "DGPOTrainer", *steps.PARTS)
    monkeypatch.setattr(steps, "trainers", lambda *_: dict.fromkeys(names, full))
    monkeypatch.setattr(steps, "free", lambda: None)
    monkeypatch.setattr(steps, "SIZES", {"tiny": None})
    for quieted in ("logging", "disable_progress_bars"):
        monkeypatch.setattr(steps, quieted, Mock())
    found = piece_module.Findings("steps", tmp_path / "x.json", seconds=60, also=())
    steps.measure(found)
    assert [row["part"] for row in found.rows] == [f"tiny, {name}" for name in names if name != "DGPOTrainer"]
    assert {row["not_possible"] for row in found.rows} == {"out of memory"}
    assert found.failures == ["tiny, DGPOTrainer: OutOfMemoryError('tried to allocate')"]
