"""All of benchmarks/gpu.sh on a CPU: every piece runs and leaves a complete result; a second call has nothing to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from gpu.__main__ import PASSED, SKIPPED
from gpu.pieces import PIECES

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"rehearsal", "hardware", "versions", "code", "seconds", "complete", "headline", "rows", "failures", "status"}


SCRIPT = str(ROOT / "benchmarks" / "gpu.sh")


def environment() -> dict[str, str]:
    found = {**os.environ, "GPU_REHEARSAL": "1", "PYTHON": sys.executable, "COLUMNS": "200"}
    found.pop("TRITON_INTERPRET", None)
    return found


def call(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = [SCRIPT, str(out), *options]
    return subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=3300)


def processes(out: Path) -> list[int]:
    """Those that were given a file in this folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(str(out) in argument for argument in process.info["cmdline"] or []):
            found.append(process.info["pid"])
    return found


@pytest.mark.soak
def test_a_piece_ends_with_its_driver(tmp_path: Path) -> None:
    driver = subprocess.Popen([SCRIPT, str(tmp_path), "--only", "head"], env=environment(), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while len(processes(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(processes(tmp_path)) == 2  # the driver and the piece
    driver.terminate()
    driver.communicate(timeout=60)
    assert driver.returncode == 143
    assert processes(tmp_path) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_whole_is_rehearsed(tmp_path: Path) -> None:
    first = call(tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    document = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert list(document["pieces"]) == [piece.name for piece in PIECES]
    for name, found in document["pieces"].items():
        assert found.keys() >= ABOUT, name
        assert found["rehearsal"] is True
        assert found["complete"] is True
        # learning needs a language model, which may not be at hand
        model_is_missing = found["status"] == SKIPPED and "GPU_MODEL" in found["skipped"]
        assert found["status"] == PASSED or model_is_missing, name
        assert found["rows"] or model_is_missing, name
        assert found["headline"] or model_is_missing, name
        assert {"benchmarks/gpu/piece.py", f"benchmarks/gpu/{name}.py"} <= found["code"].keys()
        assert name in first.stdout

    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "pieces").glob("*.json")}
    names = [name for name, found in document["pieces"].items() if found["status"] == PASSED]
    second = call(tmp_path, "--only", *names)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("passed before, on the same code") == len(names)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "pieces").glob("*.json")} == written
