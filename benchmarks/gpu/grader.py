"""The grader's worker processes beside CUDA: forks after its initialisation neither hang nor crash, and CUDA goes on.

Formulas are graded with the device idle, and while kernels are queued on it; some never end and are killed. Then the
products on the device must be what they were before.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from dgpo.grading import MathGrader
from gpu.piece import REHEARSAL, Findings, device, pick, run, synchronise

FORMULAS = [
    (r"\boxed{\frac{x^2-1}{x-1}}", "x+1", 1.0),
    (r"\boxed{(a+b)^2}", "a^2+2ab+b^2", 1.0),
    (r"\boxed{\sin^2 x + \cos^2 x}", "1", 1.0),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1.0),
    (r"\boxed{x+2}", "x+1", 0.0),
    (r"\boxed{\frac{\pi}{3}}", r"\frac{\pi}{4}", 0.0),
]


def measure(found: Findings) -> None:
    """A row per situation."""
    size = pick(8192, 256)
    a = torch.randn(size, size, device=device(), dtype=torch.bfloat16)
    before = (a @ a).float().cpu()
    repeats = pick(20, 1)
    responses, golds, scores = (list(column) * repeats for column in zip(*FORMULAS, strict=True))
    with MathGrader(workers=2, deadline=pick(5.0, 60.0)) as grader:
        for case, kernels in (("idle", 0), ("kernels queued", pick(1000, 5)), ("idle again", 0)):
            with found.part(case):
                start = time.perf_counter()
                for _ in range(kernels):
                    a @ a
                verdicts = grader.grade_many(responses, golds)
                seconds = time.perf_counter() - start
                busy = not REHEARSAL and not torch.cuda.current_stream().query()
                synchronise()
                right = [verdict.score for verdict in verdicts] == scores
                found.row(case=case, answers=len(verdicts), right=right, seconds=seconds, device_busy_at_end=busy)
                found.check(right, f"{case}: other verdicts than on a CPU")
        with found.part("descriptors"):
            opened = [path for pid in children() for path in devices(pid)]
            found.row(
                case="descriptors of the device in worker processes", count=len(opened), processes=len(children())
            )
            found.check(not opened, f"worker processes hold the device open: {sorted(set(opened))}")
    with found.part("killed"), MathGrader(workers=2, deadline=pick(1.0, 3.0)) as grader:
        grader.grade_many(responses[:6], golds[:6])  # its workers are there
        endless = r"\frac{1}{1+" * 20 + "x" + "}" * 20
        start = time.perf_counter()
        verdicts = grader.grade_many([rf"\boxed{{{endless}}}"] * 2, ["x"] * 2)
        reasons = [verdict.reason for verdict in verdicts]
        found.row(case="answers that never end", seconds=time.perf_counter() - start, reasons=", ".join(reasons))
        found.check(reasons == ["timeout", "timeout"], f"answers that never end gave {reasons}")
    with found.part("afterwards"):
        same = torch.equal((a @ a).float().cpu(), before)
        found.row(case="the product afterwards", same=same)
        found.check(same, "a product on the device is another one after grading")
    found.headline = f"{sum(row.get('answers', 0) for row in found.rows)} formulas beside kernels; CUDA goes on"


def children() -> list[int]:
    """Processes below this one, at any depth (Linux)."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    below, todo = [], [os.getpid()]
    while todo:
        for child in parents.get(todo.pop(), []):
            below.append(child)
            todo.append(child)
    return below


def devices(pid: int) -> list[str]:
    """The NVIDIA devices that a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            found.append(target)
    return found


if __name__ == "__main__":
    sys.exit(run(measure, also=("src/dgpo/grading",)))
