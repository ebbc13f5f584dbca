"""Run the atlas: many seeds of every method, staleness and task; see README.md.

python studies/atlas/run.py                     everything that is left, in order; interrupt and repeat at will
python studies/atlas/run.py --task reverse      one task; several processes share the work
python studies/atlas/run.py --status            what is done, what is left, CPU-hours
python studies/atlas/run.py --collect           write results/ from what is done
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from arms import FINAL_SEEDS, RATES, TASKS, TUNING_SEEDS, arms
from phases import WORK, collect, run_arm

from dgpo.files import FolderInUse


def status(work: Path) -> None:
    """Print the arms that are done, and the CPU-hours of those and of the rest."""
    for task in TASKS:
        mine = [arm for arm in arms() if arm.task == task]
        spent = []
        for arm in mine:
            folder = work / task / arm.name
            if (folder / "final.npz").exists():
                parts = [np.load(folder / f"{phase}.npz")["cpu_seconds"] for phase in ("tuning", "final")]
                spent.append(float(sum(parts)))
        left = len(mine) - len(spent)
        each = float(np.mean(spent)) if spent else float("nan")
        print(
            f"{task}: {len(spent)} of {len(mine)} arms, {sum(spent) / 3600:.2f} CPU-hours; {left} left, about "
            f"{left * each / 3600:.2f} CPU-hours ({each:.0f} s an arm of {len(RATES[task]) * len(TUNING_SEEDS)} + "
            f"{len(FINAL_SEEDS)} runs)"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="this task only")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder of unfinished and finished arms ({WORK})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--status", action="store_true", help="print what is done and left")
    parser.add_argument("--collect", action="store_true", help="write results/ from what is done")
    arguments = parser.parse_args()
    if arguments.status:
        return status(arguments.work)
    if arguments.collect:
        return collect(arguments.work)
    for arm in arms():
        if arguments.task in (None, arm.task):
            try:
                run_arm(arm, arguments.work, torch.device(arguments.device))
            except FolderInUse:
                continue  # another process has it


if __name__ == "__main__":
    main()
