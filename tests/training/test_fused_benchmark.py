"""benchmarks/fused_step.py runs, on its smaller model, and writes what it measured beside what was there."""

from __future__ import annotations

import json
from pathlib import Path

from forked import run_script

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fused_step.py"


def test_it_measures_three_trainers(tmp_path):
    out = tmp_path / "fused_step.json"
    out.write_text(json.dumps({"cases": {"earlier": {}}}))
    words = ["--cases", "demo", "--without-spread", "0.5", "--rounds", "1", "--updates", "2", "--skip", "1"]
    done = run_script(SCRIPT, *words, "--out", out)
    assert done.returncode == 0, done.stderr[-4000:]
    cases = json.loads(out.read_text())["cases"]
    assert cases.keys() == {"earlier", "demo, 50% of groups without spread"}
    trainers = cases["demo, 50% of groups without spread"]["trainers"]
    assert trainers["GRPOTrainer (TRL)"]["speedup"] == {"times": 1.0, "min": 1.0, "max": 1.0}
    assert all(row["seconds"] > 0 for row in trainers.values())
    assert list(trainers) == ["GRPOTrainer (TRL)", "DGPOTrainer, fused_loss=False", "DGPOTrainer"]
