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


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one scenario has left: parameters by name, the rows of the log with a loss, and the facts of every rank."""

    parameters: dict[str, Tensor]
    log: list[dict[str, float]]
    ranks: list[dict[str, Any]]
    model: Path


def start(launcher: str, ranks: int, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python with these words, on so many ranks; they have to leave with 0."""
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher](ranks), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done


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
