"""Starts `distributed_script.py` on one or several processes, the ways that users do, and reads what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forked import run_script

SCRIPT = Path(__file__).with_name("distributed_script.py")
ACCELERATE = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes"]
LAUNCHERS = {
    # use_cpu is set in the script: without it torchrun starts runs that do not know of each other
    "torchrun": lambda ranks: ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"],
    # --multi_gpu without a GPU: with --cpu, accelerate starts one process whatever the number says
    "accelerate": lambda ranks: [*ACCELERATE, str(ranks)],
}
TIMEOUT = 300.0
"""Seconds for a launch."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one scenario has left: parameters by name, the rows of the log with a loss, and the facts of every rank."""

    parameters: dict[str, Tensor]
    log: list[dict[str, float]]
    ranks: list[dict[str, Any]]
    model: Path


def start(launcher: str, ranks: int, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with these words, on so many ranks; they have to leave with 0."""
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS[launcher](ranks), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        # it stops its ranks, which would wait for each other for ever if it were killed
        process.terminate()
        process.communicate()
        raise
    assert process.returncode == 0, stderr[-6000:]
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def train(launcher: str, ranks: int, folder: Path, out: Path, scenarios: dict[str, dict[str, Any]]) -> dict[str, Run]:
    """All scenarios in one launch: starting costs more than they do. "python" is no launcher, and for one process."""
    words = (SCRIPT, folder, out, json.dumps(scenarios))
    if launcher == "python":
        assert ranks == 1
        alone = run_script(*words)
        assert alone.returncode == 0, alone.stderr[-6000:]
    else:
        start(launcher, ranks, *words)
    return {
        name: Run(
            parameters=torch.load(out / f"{name}.pt"),
            log=[row for row in json.loads((out / f"{name}.json").read_text()) if "loss" in row],
            ranks=json.loads((out / f"{name}-ranks.json").read_text()),
            model=out / f"{name}-model",
        )
        for name in scenarios
    }
