"""RESULTS.md shows what benchmarks/gpu.sh has measured, or says that nothing was."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
HEAD = {"model": "7B", "N": 8192, "H": 3584, "V": 152_064, "zero_advantage": 0.0}
STEP = {"model": "1.5B", "without_spread": 0.5, "low": 0.4, "high": 0.6, "tokens_per_second": 12_345.6}
ROWS: dict[str, list[dict[str, Any]]] = {
    "head": [
        {
            **HEAD,
            "variant": "dgpo",
            "ms": 37.1,
            "ratio": 1.094,
            "low": 1.08,
            "high": 1.12,
            "peak_mib": 5120.4,
            "goal": 1.12,
        },
        {**HEAD, "variant": "Liger GRPO loss", "missing": "not installed (liger_kernel)"},
        {**HEAD, "missing": "out of time"},
        {"kernels": "4096 x 151936", "warps": 8},
    ],
    "steps": [
        {**STEP, "trainer": "DGPOTrainer", "seconds_per_update": 0.5, "times_as_fast": 1.75, "peak_mib": None},
        {"part": "1.5B, DGPOTrainer", "not_possible": "out of time: 9 s left"},
    ],
    "learns_dgpo": [
        {
            "method": "dgpo",
            "updates": 84,
            "seconds_per_update": 0.71,
            "accuracies": {
                "problems": 128,
                "avg@8": {"before": 17.5, "after": 61.25, "difference": [43.75, 38.1, 49.4]},
                "pass@8": {"before": 60.0, "after": 90.0},
            },
        }
    ],
    "seeds": [
        {
            **{"part": "cell", "arm": "reverse, dgpo_1_2-k16", "seeds": 16, "updates": 256, "seconds_per_seed": 0.41},
            **{"cpu_seconds_per_seed": 1.13, "score": 0.912, "committed_score": 0.905},
        },
        {"part": "speed", "seeds": 512, "not_measured": "out of time"},
    ],
}
SHOWN = (
    "| 7B, 8,192, 3,584 | 0% | dgpo | 37.10 | 1.09 | 1.08 .. 1.12 | 1.12 | 5,120 |",
    "| 7B, 8,192, 3,584 | 0% | Liger GRPO loss | not installed (liger_kernel) | | | | |",
    "| 7B, 8,192, 3,584 | 0% |  | out of time | | | | |",
    "| 1.5B | 50% | DGPOTrainer | 0.500 | 0.400 .. 0.600 | 12,346 | 1.75 |  |",
    "| 1.5B, DGPOTrainer | | out of time: 9 s left | | | | | |",
    "| dgpo | 84 | 0.71 | avg@8 | 17.5 | 61.2 | +43.8 (+38.1 .. +49.4) |",
    "| dgpo | 84 | 0.71 | pass@8 | 60.0 | 90.0 |  |",
    "| reverse, dgpo_1_2-k16 | 16 | 256 | 0.410 | 1.13 | 0.912 | 0.905 |",
    "| seeds | FAILED | 31 | a/b is wrong |",
)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_report", BENCHMARKS / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def test_every_measurement_is_a_row(report: ModuleType, tmp_path: Path) -> None:
    pieces = {name: {"status": "passed", "wall_s": 30, "headline": name, "rows": rows} for name, rows in ROWS.items()}
    pieces["seeds"] |= {"status": "FAILED", "wall_s": 31, "failures": ["a|b is wrong"]}
    document = {"hardware": {"device": "NVIDIA H200"}, "versions": {"torch": "2.11", "trl": None}, "pieces": pieces}
    (tmp_path / "results" / "gpu.json").write_text(json.dumps(document))
    lines = report.page().splitlines()
    for line in SHOWN:
        assert line in lines, line
    assert "Measured on NVIDIA H200; torch 2.11." in lines
    assert report.NO_GPU not in lines
    # every row of a table has the columns of its head
    columns = 0
    for line in lines:
        if line.startswith("|---"):
            columns = line.count("|")
        elif line.startswith("| ") and columns:
            assert line.count("|") == columns, line
        elif not line.startswith("|"):
            columns = 0


def test_without_a_gpu_it_says_so(report: ModuleType) -> None:
    assert report.NO_GPU in report.page().splitlines()


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert ("The figures above were not measured on a GPU" in text) == (
        not (BENCHMARKS / "results" / "gpu.json").is_file()
    )
