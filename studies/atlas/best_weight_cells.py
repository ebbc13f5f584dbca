"""What `best_weight.py` computes: pairs of policies of the arm `is`, and the moments of their prompts' gradients.

A cell is one pair: a task, a staleness k, a seed, the update of π_old and the updates from there to π.
"""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from arms import ABLATION, METHODS, TASKS, Arm
from engine import Setting, shape_of
from per_prompt import Bins, fresh, measure, states
from phases import chosen_rate, starts
from problems import PROBLEMS

from dgpo import objectives
from dgpo.files import FolderInUse, FolderLock, write_bytes_atomic

COMPARED = METHODS | {label: ABLATION[label] for label in ("dgpo(1,2) capped",)}
"""Label -> objective; the first is importance sampling."""
STATES = (32, 96, 160)
"""Updates after which the run's policy is π_old."""
POSITIONS = {16: (4, 15), 64: (16, 63)}
"""k -> updates since π_old after which the run's policy is π: a quarter of a generation, and before its last update."""
SEEDS = (0, 1)
PROMPTS, BLOCK = 1024, 32
"""Fresh prompts, and prompts of a block of the bootstrap."""
GROUP, UPDATE = Setting.group, Setting.prompts
"""Responses to a prompt, and prompts of an update (K), as in the runs."""
RESAMPLES = 200
LOW, HIGH = 0.8, 1.2
"""The usual boundaries of a clip."""
EDGES = (
    *(LOW * f for f in (1 / 8, 1 / 4, 1 / 2, math.sqrt(1 / 2), 1)),
    1.0,
    *(HIGH * f for f in (1, math.sqrt(2), 2, 4, 8)),
)
"""Ratios between two bins, for either sign of A."""
N_GRID = tuple(i / 4 for i in range(17))
M_GRID = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, math.inf)
FOLDER = "best_weight"


def bins() -> Bins:
    """By sign of A and ratio."""
    return Bins(torch.tensor(EDGES, dtype=torch.float64).log())


def bounds() -> list[tuple[int, float, float]]:
    """Sign of A of every bin, and the ratios between which it lies."""
    edges = (0.0, *EDGES, math.inf)
    return [(sign, low, high) for sign in (-1, 1) for low, high in itertools.pairwise(edges)]


def exponents() -> list[tuple[float, float]]:
    """(n, m) of the grid of DGPO."""
    return [(n, m) for n in N_GRID for m in M_GRID]


@dataclass(frozen=True)
class Cell:
    """One pair of policies."""

    task: str
    k: int
    seed: int
    old: int
    position: int

    def folder(self, work: Path) -> Path:
        """Of all cells of a task and staleness."""
        return work / FOLDER / f"{self.task}-k{self.k}"

    def tuning(self, work: Path) -> Path:
        """The file that says the arm's learning rate."""
        return work / self.task / Arm(self.task, self.k, "is").name / "tuning.npz"

    def path(self, work: Path) -> Path:
        """The file of its moments."""
        return self.folder(work) / f"seed{self.seed}-{self.old}+{self.position}.pt"


def cells() -> Iterator[Cell]:
    """All, in the order in which they are computed: the largest drifts of all tasks come first."""
    for seed in SEEDS:
        for index in (-1, 0):
            for old in STATES:
                for task in TASKS:
                    for k in POSITIONS:
                        yield Cell(task, k, seed, old, POSITIONS[k][index])


def compute(work: Path) -> None:
    """Compute every cell that is left and whose arm has its learning rate; several processes share the work."""
    for cell in cells():
        if cell.tuning(work).exists() and not cell.path(work).exists():
            try:
                with FolderLock(cell.folder(work), "computing the best weight in", f"_{cell.path(work).stem}.lock"):
                    _save(cell.path(work), measured(cell, work))
            except FolderInUse:
                continue  # another process has it


def load(work: Path, task: str, k: int) -> dict[Cell, dict[str, Any]]:
    """The cells of a task and staleness that are done."""
    mine = [cell for cell in cells() if (cell.task, cell.k) == (task, k)]
    return {cell: torch.load(cell.path(work), weights_only=True) for cell in mine if cell.path(work).exists()}


def measured(cell: Cell, work: Path) -> dict[str, Any]:
    """Name -> tensor of the cell's `per_prompt.Found`, its learning rate and its CPU-seconds."""
    before = time.process_time()
    policies = _policies(cell, work)
    problems, i = PROBLEMS[cell.task], SEEDS.index(cell.seed)
    shape = shape_of(problems)
    data = fresh(problems, shape, policies[f"{cell.old}+0"][i], cell.seed, cell.old, PROMPTS, GROUP)
    found = measure(
        shape,
        policies[f"{cell.old}+{cell.position}"][i],
        data,
        [objectives.make(spec) for spec in COMPARED.values()],
        [objectives.make("dgpo", n=n, m=m) for n, m in exponents()],
        bins(),
        update=UPDATE,
        block=BLOCK,
        resamples=RESAMPLES,
        # positions share their prompts, and their resamples
        seed=1000 * cell.seed + cell.old,
    )
    values = vars(found.moments) | {name: getattr(found, name) for name in ("tokens", "weights", "log_ratio")}
    return values | {"rate": policies["rate"], "cpu_seconds": time.process_time() - before}


def _policies(cell: Cell, work: Path) -> dict[str, Any]:
    """ "OLD+SINCE" -> parameters [S, size] of all seeds, and the learning rate; computed once."""
    path = cell.folder(work) / "policies.pt"
    if not path.exists():
        rate = chosen_rate(cell.tuning(work))
        parameters = starts(cell.task, work, torch.device("cpu"))
        setting = Setting(PROBLEMS[cell.task], objectives.make("is"), updates_per_generation=cell.k)
        start = torch.stack([parameters[seed] for seed in SEEDS])
        found = states(setting, start, [*SEEDS], rate, STATES, POSITIONS[cell.k])
        _save(path, {f"{old}+{since}": flat for (old, since), flat in found.items()} | {"rate": rate})
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def _save(path: Path, values: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(values, content)
    write_bytes_atomic(path, content.getbuffer())
