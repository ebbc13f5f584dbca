"""`dgpo compare` that is killed again and again, in both ways, ends with the numbers of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo.runs.results import read_results

SLOW = """
import time

def slow(completions, **kwargs):
    time.sleep(1)
    return [float(len(text)) for text in completions]
"""


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_killed_and_continued(quick_settings: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "slow_reward_of_this_soak.py").write_text(SLOW)
    config = {name: value for name, value in quick_settings.items() if name not in ("output_dir", "save_strategy")}
    study = {
        "config": {"task": "addition", **config, "max_steps": 16, "rewards": ["slow_reward_of_this_soak.slow"]},
        "objectives": ["grpo", "is"],
        "seeds": [0],
        "tune": {"learning_rate": ["1e-3", "1e-2"]},
        "tuning_seeds": [5],
        "evaluation": {"samples": 1, "limit": 8, "every": 4},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))

    def begin(out: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-P", "-m", "dgpo", "compare", "study.yaml", "--out", out, "--jobs", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    whole = begin("whole")
    said, _ = whole.communicate(timeout=1500)
    assert whole.returncode == 0, said

    stops = []
    for kill in ["all", "parent", "run"]:
        began, process, runs = time.time(), begin("killed"), []
        while process.poll() is None and not (runs and _under_way(tmp_path / "killed", began)):
            time.sleep(0.1)
            runs = _children(process.pid)
        if runs:
            stops.append(kill)
        if kill == "run":
            for pid in runs:
                os.kill(pid, signal.SIGKILL)
            # those runs are not tried again in this call; what has begun since is stopped before its first update
            process.send_signal(signal.SIGTERM)
        else:
            process.kill()
            for pid in runs if kill == "all" else []:
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=600)
    assert stops == ["all", "parent", "run"]
    last = begin("killed")
    said, _ = last.communicate(timeout=1500)
    assert last.returncode == 0, said

    tuned = [json.loads((tmp_path / out / "tuning.json").read_text()) for out in ("whole", "killed")]
    assert tuned[0] == tuned[1]
    assert _scores(tmp_path / "whole") == _scores(tmp_path / "killed")


def _under_way(root: Path, began: float) -> bool:
    """Whether a run has logged something since then, has a checkpoint, and is not at its last update."""
    for record in root.glob("*/**/record/metrics.jsonl"):
        if record.stat().st_mtime > began and any((record.parents[1] / "train").glob("checkpoint-*")):
            last = json.loads(record.read_text().rpartition("}\n")[0].rpartition("\n")[2] + "}")
            if last["step"] < 16:
                return True
    return False


def _children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def _scores(root: Path) -> dict[str, Any]:
    found = {}
    for cell in sorted(root.glob("**/cell.json")):
        for step in (0, 4, 8, 12, 16):
            (result,) = read_results(cell.parent / "train" / "eval" / str(step))["benchmarks"].values()
            found[f"{cell.parent.relative_to(root)} {step}"] = result["per_problem"]
    assert len(found) == 6 * 5
    return found
