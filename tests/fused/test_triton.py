"""The Triton kernels without a GPU: interpreted, and compiled ahead of time for the GPUs that they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

OLDEST = "3.7"
"""Of the extra dev. Triton 3.2, which torch 2.6 brings, interprets with older releases of numpy only."""

ROOT = Path(__file__).resolve().parents[2]
RESOURCES = ROOT / "benchmarks" / "triton_resources.py"
REPORT = ROOT / "benchmarks" / "results" / "triton_resources.json"


def run(*arguments: str, folder: Path, interpret: bool) -> str:
    """Python in a process of its own: whether triton interprets is decided when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "triton")
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_importing_the_package_does_not_import_triton(tmp_path: Path) -> None:
    code = "import sys, dgpo.fused.triton; print('triton' in sys.modules)"
    assert run("-c", code, folder=tmp_path, interpret=False).strip() == "False"


def test_unavailable_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpo.fused.triton import launch, unavailable

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert unavailable(torch.device("cuda")) == "triton is not installed"
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    assert unavailable(torch.device("cuda", 1)) is None
    assert unavailable(torch.device("cpu")) == "triton needs a CUDA device, the tensors are on cpu"


def test_the_kernels_interpreted(tmp_path: Path) -> None:
    """All of test_triton_interpreted.py."""
    pytest.importorskip("triton", minversion=OLDEST)
    file = Path(__file__).with_name("test_triton_interpreted.py")
    alone = ("-q", "-p", "no:cacheprovider", "-c", os.devnull)
    printed = run("-m", "pytest", *alone, str(file), folder=tmp_path, interpret=True)
    passed = re.search(r"^(\d+) passed(?:, \d+ warnings?)? in", printed, re.MULTILINE)
    assert passed is not None, printed
    assert int(passed.group(1)) > 50


def test_the_kernels_compile_without_spills(tmp_path: Path) -> None:
    """For A100 and H100/H200; the recorded report is of the same kernels."""
    pytest.importorskip("triton", minversion=OLDEST)
    now = json.loads(run(str(RESOURCES), "-", folder=tmp_path, interpret=False))
    assert {row["sm"] for row in now["kernels"]} == {80, 90}
    assert [row for row in now["kernels"] if row["spill_bytes"]] == []
    recorded = json.loads(REPORT.read_text(encoding="utf-8"))
    assert recorded["launch"] == now["launch"]
    if recorded["triton"] == now["triton"]:  # another compiler, other registers
        assert recorded == now


def test_blocks_are_read_in_whole_vectors(tmp_path: Path) -> None:
    """The main loop of each kernel moves 16 bytes per instruction, and no lane waits for another one in it."""
    pytest.importorskip("triton", minversion=OLDEST)
    code = (
        f"import sys; sys.path.insert(0, {str(RESOURCES.parent)!r})\n"
        "from triton_resources import compiled\n"
        "for name in ('stats', 'gradient'): print(compiled(name, 'bf16', 'bf16', {}, 90).asm['ptx'])\n"
        "print(compiled('gradient', 'fp32', 'bf16', {}, 90).asm['ptx'])\n"
    )
    printed = run("-c", code, folder=tmp_path, interpret=False)
    stats, gradient, narrowing = printed.split(".version")[1:]
    for ptx in (stats, gradient, narrowing):
        assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == 2
    # 16 logits and one rescaling of each of the two lanes
    assert stats[: stats.index("shfl.sync")].count("ex2.approx") == 18
    assert gradient.count("st.global.v4.b32") == 4
    # all logits of a block are in registers before the first narrow gradient is written over them
    barrier = narrowing.index("bar.sync")
    assert narrowing.rindex("ld.global.v4") < barrier < narrowing.index("st.global")
