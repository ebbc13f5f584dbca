"""`make demo` in full, for three seeds in a row: a language model gets better at addition under DGPO."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from dgpo.training.demo import UPDATES

RISE = 0.25
MINUTES = 8
"""On two quiet cores; a machine that does other work as well is slower, so this is printed and not asserted."""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_greedy_accuracy_rises_for_three_seeds(
    executable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summaries, seconds = [], []
    for seed in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [executable, "demo", "--seed", str(seed), "--out", str(tmp_path / f"seed-{seed}")],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        summaries.append(json.loads((tmp_path / f"seed-{seed}" / "summary.json").read_text()))
    with capsys.disabled():
        for summary, took in zip(summaries, seconds, strict=True):
            before, after = summary["before"], summary["after"]
            pairs = ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in before)
            print(
                f"\nseed {summary['seed']}: {pairs}; {took:.0f} s (at most {60 * MINUTES} on two quiet cores)", end=""
            )
        print()
    for seed, summary in enumerate(summaries):
        assert summary.keys() == {"before", "after", "objective", "updates", "seconds", "seed"}
        assert summary["before"].keys() == summary["after"].keys() == {"greedy", "avg@8", "pass@8"}
        assert (summary["objective"], summary["updates"], summary["seed"]) == ("dgpo", UPDATES, seed)
        assert 0.3 < summary["before"]["greedy"] < 0.6
        assert summary["after"]["greedy"] - summary["before"]["greedy"] >= RISE
