"""What `dgpo compare` says before the runs: how many there are, what is tuned, and how they are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo.comparison.study import Study


def plan_lines(study: Study, *, jobs: int, devices: Sequence[str]) -> list[str]:
    """The plan of a study as lines of text."""
    arms, seeds, tuning = len(study.arms), len(study.seeds), len(study.tuning_cells())
    lines = [f"{study.name}: {arms} arms x {seeds} seeds = {arms * seeds} runs of {study.updates} updates"]
    lines += [f"  {arm.label}{' (baseline)' if arm.label == study.baseline else ''}" for arm in study.arms]
    if tuning:
        axes = "; ".join(f"{name} in {', '.join(values)}" for name, values in study.tune.items())
        lines.append(
            f"tuned before: {axes}: {len(study.settings)} settings x {len(study.tuning_seeds)} seeds for each arm = "
            f"{tuning} runs more; the best mean {study.criterion} score is chosen"
        )
    else:
        lines.append("nothing is tuned: an arm may lose because the recipe's settings do not suit it (see `tune`)")
    names, kwargs = study.options["eval_benchmarks"], study.options["eval_benchmark_kwargs"]
    lines.append(
        f"evaluated on {', '.join(names)} after {', '.join(map(str, study.evaluated))} updates, "
        + ", ".join(f"{name}={value}" for name, value in kwargs.items())
    )
    return [*lines, f"{jobs} at a time" + (f" on {len(devices)} GPUs" if devices else "")]
