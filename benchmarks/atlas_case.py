"""What the engine of studies/atlas is timed on: the task `reverse`, and a GPT-2 of 0.1 million parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dgpo import objectives

sys.path.append(str(Path(__file__).parents[1] / "studies" / "atlas"))
from engine import Setting, shape_of, train
from problems import PROBLEMS

__all__ = ["K", "OBJECTIVE", "PROBLEM", "SHAPE", "UPDATES", "seconds_per_seed"]

OBJECTIVE = "dgpo"
K = 16
"""Updates per generation."""
UPDATES = 512
"""Of a run; what the numbers are scaled to."""
PROBLEM = PROBLEMS["reverse"]
SHAPE = shape_of(PROBLEM, width=64, layers=2, heads=2)


def seconds_per_seed(members: int, updates: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Of `UPDATES` updates of that many members at once, from the first `updates`; by a clock in seconds."""
    setting = Setting(PROBLEM, objectives.make(OBJECTIVE), updates=updates, updates_per_generation=K)
    seeds = list(range(members))
    start = SHAPE.initial(seeds).to(device)
    before = clock()
    train(setting, SHAPE, start, seeds, torch.full((members,), 1e-3))
    return (clock() - before) / members * UPDATES / updates
