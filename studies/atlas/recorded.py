"""The recorded runs of the atlas, as `run.py --collect` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, arms
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
EVALUATED_EVERY = 16


@dataclass(frozen=True)
class Stack:
    """The runs of one arm that were trained together.

    Attributes:
        arm: task, staleness and method.
        phase: "tuning" or "final".
        seeds, rates: [S] of the members.
        scores: [17, S] mean probability of the right answer, before the first and after every 16th update.
        skipped: [S] updates left out because a gradient was not finite.
        metrics: name -> [256, S] per update (`run.PER_UPDATE`), or [16, S] means between evaluations.
        cpu_seconds: of the stack, since it was last resumed.
    """

    arm: Arm
    phase: str
    seeds: NDArray[np.int64]
    rates: NDArray[np.float64]
    scores: NDArray[np.float32]
    skipped: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float32]]
    cpu_seconds: float

    @property
    def area(self) -> NDArray[np.float32]:
        """[S] the primary score: the mean over the evaluations."""
        return self.scores.mean(0)


def stacks(results: Path = RESULTS) -> list[Stack]:
    """Everything that is recorded, in the order of the grid."""
    found = []
    opened: dict[str, Mapping[str, NDArray[Any]]] = {}
    for arm in arms():
        path = results / f"{arm.task}.npz"
        if arm.task not in opened:
            opened[arm.task] = dict(np.load(path)) if path.exists() else {}
        for phase in ("tuning", "final"):
            prefix = f"{arm.name}/{phase}/"
            values = {
                key.removeprefix(prefix): value for key, value in opened[arm.task].items() if key.startswith(prefix)
            }
            if values:
                named = {name: values.pop(name) for name in ("seeds", "rates", "scores", "skipped")}
                seconds = float(values.pop("cpu_seconds"))
                metrics = {name.replace(".", "/"): value for name, value in values.items()}
                found.append(Stack(arm, phase, **named, metrics=metrics, cpu_seconds=seconds))
    return found


def final(found: list[Stack]) -> dict[tuple[str, int, str], Stack]:
    """(task, k, method) -> its final stack."""
    return {(s.arm.task, s.arm.k, s.arm.method): s for s in found if s.phase == "final"}


def tuning(found: list[Stack]) -> dict[tuple[str, int, str], Stack]:
    """(task, k, method) -> its tuning stack."""
    return {(s.arm.task, s.arm.k, s.arm.method): s for s in found if s.phase == "tuning"}
