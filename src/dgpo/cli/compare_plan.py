"""What `dgpo compare` says before the runs: how many there are, what is tuned, and how they are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo.comparison.study import Study
from dgpo.counts import counted


def plan_lines(study: Study, *, jobs: int, devices: Sequence[str]) -> list[str]:
    """The plan of a study as lines of text."""
    arms, seeds, tuning = len(study.arms), len(study.seeds), len(study.tuning_cells())
    lines = [
        f"{study.name}: {counted(arms, 'arm')} x {counted(seeds, 'seed')} = "
        f"{counted(arms * seeds, 'run')} of {counted(study.updates, 'update')}"
    ]
    lines += [f"  {arm.label}{' (baseline)' if arm.label == study.baseline else ''}" for arm in study.arms]
    if tuning:
        axes = "; ".join(f"{name} in {', '.join(values)}" for name, values in study.tune.items())
        lines.append(
            f"tuned before: {axes}: {counted(len(study.settings), 'setting')} x "
            f"{counted(len(study.tuning_seeds), 'seed')} for each arm = {counted(tuning, 'run')} more; the best mean "
            f"{study.criterion} score is chosen"
        )
    else:
        lines.append("nothing is tuned: an arm may lose because the recipe's settings do not suit it (see `tune`)")
    names, kwargs = study.options["eval_benchmarks"], study.options["eval_benchmark_kwargs"]
    lines.append(
        f"evaluated on {', '.join(names)} after {', '.join(map(str, study.evaluated))} updates, "
        + ", ".join(f"{name}={value}" for name, value in kwargs.items())
    )
    return [*lines, f"{jobs} at a time" + (f" on {counted(len(devices), 'GPU')}" if devices else "")]
