"""benchmarks/trainer_step.py runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULT = BENCHMARKS / "results" / "trainer_step.json"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trainer_step_script", BENCHMARKS / "trainer_step.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_prints_and_writes(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One round of two updates; the same keys as in the committed result."""
    out = tmp_path / "result.json"
    flags = ["--lengths", "2", "--rounds", "1", "--updates", "2", "--skip", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["trainer_step.py", *flags])
    script.main()
    assert "DGPOTrainer, dgpo" in capsys.readouterr().out
    new, committed = json.loads(out.read_text()), json.loads(RESULT.read_text())
    assert new.keys() == committed.keys()
    assert new["machine"].keys() == committed["machine"].keys()
    rows = new["by_completion_length"]["2"]
    assert list(rows) == list(committed["by_completion_length"]["5"])
    assert rows[script.STOCK]["speedup"] == {"times": 1.0, "min": 1.0, "max": 1.0}
    assert all(len(row["rounds"]) == 1 and row["rounds"][0] > 0 for row in rows.values())


def test_a_ratio_is_that_of_the_medians_and_its_range_that_of_the_rounds(script: ModuleType) -> None:
    times = {script.STOCK: [1.0, 2.0, 4.0], "ours": [2.0, 2.0, 1.0]}
    assert script.summarise(times)["ours"]["speedup"] == {"times": 1.0, "min": 0.5, "max": 4.0}
