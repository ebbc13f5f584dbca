"""Many seeds at once: the engine of studies/atlas on the device, its time per seed, and one of its cells.

The cell is DGPO's at 16 updates per generation on the task `reverse`, with the seeds and the learning rate of the
committed run, which was on a CPU. Prompts and draws are the same; floating-point sums are not, so that the curves of a
seed part after a while, and the means over seeds may not.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from atlas_case import SHAPE, UPDATES, K, seconds_per_seed

from dgpo import objectives
from gpu.piece import ROOT, Findings, device, free, pick, run, synchronise

# `atlas_case` has put studies/atlas on the path
from arms import OBJECTIVES, Arm  # isort: skip
from engine import Setting, shape_of, train  # isort: skip
from problems import PROBLEMS  # isort: skip
from recorded import RESULTS  # isort: skip
from start import warm_up  # isort: skip

CPU = ROOT / "benchmarks" / "results" / "atlas_engine.json"
MEMBERS = pick((16, 128, 512), (2,))
MEASURED = pick(32, K)
"""Updates that are timed, for each number of members."""
ARM = Arm("reverse", K, "dgpo(1,2)")
STANDARD_ERRORS = 4
"""Between the means of the final scores on two devices, at most."""


def now() -> float:
    """Seconds, once the device has done what it was given."""
    synchronise()
    return time.perf_counter()


def measure(found: Findings) -> None:
    """Time per seed of more and more seeds; then the cell."""
    with found.part("cell"):
        cell(found)
    committed = json.loads(CPU.read_text(encoding="utf-8"))["rows"]["engine of studies/atlas"]["cpu_seconds_per_seed"]
    # libraries start and kernels load with the first generation
    seconds_per_seed(MEMBERS[0], K, device(), now)
    for members in MEMBERS:
        with found.part(f"{members} seeds"):
            if found.left() < 10:
                found.row(part="speed", seeds=members, not_measured="out of time")
                continue
            seconds = seconds_per_seed(members, MEASURED, device(), now)
            found.row(
                part="speed",
                seeds=members,
                parameters=SHAPE.size,
                updates=UPDATES,
                measured_updates=MEASURED,
                seconds_per_seed=seconds,
                cpu_seconds_per_seed=committed,
                ratio=committed / seconds,
            )
            found.headline = f"{seconds:.3g} s per seed of {members}, {committed:.3g} on a CPU core"
        free()


def cell(found: Findings) -> None:
    """The same starts, seeds and learning rate as the committed run; its time and its scores."""
    with np.load(RESULTS / f"{ARM.task}.npz") as saved:
        committed = {name: saved[f"{ARM.name}/final/{name}"] for name in ("seeds", "rates", "scores", "cpu_seconds")}
    count, updates = pick((len(committed["seeds"]), 256), (2, 32))
    seeds = committed["seeds"][:count].tolist()
    problems = PROBLEMS[ARM.task]
    began = now()
    start, _ = warm_up(problems, seeds, device())
    warm = now()
    setting = Setting(problems, objectives.make(OBJECTIVES[ARM.method]), updates=updates, updates_per_generation=ARM.k)
    state = train(setting, shape_of(problems), start, seeds, torch.from_numpy(committed["rates"][:count]).float())
    end = now()
    scores, theirs = state.scores.numpy(), committed["scores"][: len(state.scores), :count]
    found.row(
        part="cell",
        arm=f"{ARM.task}, {ARM.name}",
        seeds=count,
        updates=updates,
        seconds_of_starts=warm - began,
        seconds_per_seed=(end - warm) / count,
        # of 256 updates, whatever was run here
        cpu_seconds_per_seed=float(committed["cpu_seconds"]) / len(committed["seeds"]) * updates / 256,
        score_at_start=float(scores[0].mean()),
        score=float(scores[-1].mean()),
        committed_score_at_start=float(theirs[0].mean()),
        committed_score=float(theirs[-1].mean()),
        skipped=int(state.skipped.sum()),
    )
    error = ((scores[-1].var(ddof=1) + theirs[-1].var(ddof=1)) / count) ** 0.5
    distance = abs(float(scores[-1].mean() - theirs[-1].mean()))
    found.check(
        distance <= STANDARD_ERRORS * max(float(error), 1e-3),
        f"the mean score of {ARM.name} is {scores[-1].mean():.3f} here and {theirs[-1].mean():.3f} in the committed "
        f"run, {distance / max(float(error), 1e-3):.1f} standard errors apart",
    )


if __name__ == "__main__":
    sys.exit(run(measure))
