"""From outcomes to the summary of a comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dgpo.comparison import statistics
from dgpo.comparison.outcome import MEASURES, Measure, Outcome
from dgpo.comparison.scored import ALL_TASKS, Cell, Run, Runs, runs_of
from dgpo.comparison.summary import Against, Curve, Method, Summary, Tuned
from dgpo.counts import counted
from dgpo.evaluation.intervals import POWER
from dgpo.evaluation.paired import holm
from dgpo.fields import check_value
from dgpo.registry import did_you_mean
from dgpo.runs.results import Estimate

Strata = Mapping[str, Mapping[int, Run]]
"""Stratum -> seed -> run"""


def summarise(
    outcomes: Sequence[Outcome],
    *,
    baseline: str,
    tuning: Sequence[Tuned] = (),
    same_runs: bool | None = None,
    cells: Iterable[Cell] = (),
    measure: Measure = "final",
    alpha: float = statistics.ALPHA,
    power: float = POWER,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Summary:
    """Compare the arms of some outcomes with one of them.

    Every run counts. One that diverged counts with the scores that it has; where it has none, because it ended before
    the last evaluation, it counts as 0 (`Outcome.until`). Runs that are merely unfinished have no score: they are
    named, and left out.

    Args:
        outcomes: one per run and task.
        baseline: label of the arm that the others are compared with.
        tuning: how the settings were chosen.
        same_runs: whether outcomes of one arm and seed on several tasks are evaluations of one run. If so, the run's
            score is its mean over tasks; else tasks are strata with independent runs. Only for several tasks.
        cells: (arm, task, seed) of all runs that there should be.
        measure: what is tested, "final" or "area".
        alpha: level of all tests together.
        power: for `detectable`.
        confidence: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same outcomes and seed give the same summary.
        about: for `Summary.about`.

    Raises:
        ValueError: as `runs_of`; an unknown measure or baseline, or a baseline without a complete run; several tasks
            and no `same_runs`; a level outside (0, 1).
    """
    if measure not in MEASURES:
        raise ValueError(f"measure = {measure!r} is unknown; expected one of {', '.join(MEASURES)}")
    check_value("alpha", alpha, "(0, 1)")
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    if same_runs is None and len(tasks) > 1:
        raise ValueError(
            f"{counted(len(tasks), 'task')} ({', '.join(tasks)}) and no same_runs; expected True if each run was "
            "evaluated on all of them, False if each has its own runs"
        )
    runs = runs_of(outcomes, same_runs=bool(same_runs), cells=cells)
    if baseline not in runs.arms:
        hint = did_you_mean(baseline, runs.arms)
        raise ValueError(f"baseline = {baseline!r} has no runs{hint}; expected one of {', '.join(runs.arms)}")
    strata = {arm: found for arm in runs.arms if (found := runs.strata(arm))}
    if baseline not in strata:
        raise ValueError(f"baseline {baseline!r} has no complete run to compare with")
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    comparisons = len(runs.arms) - 1
    level = {"comparisons": max(1, comparisons), "alpha": alpha, "power": power}
    against = {
        arm: _against(found, strata[baseline], runs.tasks, measure, options, level)
        for arm, found in strata.items()
        if arm != baseline
    }
    compared = {arm: one for arm, one in against.items() if one is not None}
    # an arm that cannot be tested is still one that could have won
    adjusted = holm([one.p_value for one in compared.values()] + [1.0] * (comparisons - len(compared)))
    compared = {arm: replace(one, p_adjusted=p) for (arm, one), p in zip(compared.items(), adjusted, strict=False)}
    chosen = {one.arm: one for one in tuning}
    methods = [_method(arm, found, runs, compared.get(arm), chosen.get(arm), options) for arm, found in strata.items()]
    return Summary(
        baseline=baseline,
        measure=measure,
        methods=tuple(methods),
        tasks=tuple(runs.tasks),
        same_runs=bool(same_runs),
        seeds=tuple(sorted({run.seed for run in runs.complete})),
        comparisons=comparisons,
        alpha=alpha,
        power=power,
        confidence=confidence,
        curves=tuple(_curves(runs, confidence, seed)),
        incomplete=tuple(runs.incomplete),
        warnings=tuple(_warnings(runs, strata, compared, baseline, alpha, tuning)),
        about=dict(about or {}),
    )


def _values(strata: Strata, name: str) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    return [np.array([getattr(run, name) for run in runs.values()]) for runs in strata.values()]


def _method(
    arm: str, strata: Strata, runs: Runs, against: Against | None, tuned: Tuned | None, options: Mapping[str, Any]
) -> Method:
    own = [run for found in strata.values() for run in found.values()]
    finals = _values(strata, "final")
    variances = [float(values.var(ddof=1)) for values in finals if len(values) > 1]
    of_tasks: dict[str, list[float]] = {}
    for run in runs.of_tasks:
        if run.arm == arm:
            of_tasks.setdefault(run.stratum, []).append(run.final)
    several = len(runs.tasks) > 1
    return Method(
        arm=arm,
        runs=len(own),
        start=float(np.mean([run.scores[0] for run in own])),
        final=statistics.mean(finals, **options),
        final_middle=statistics.interquartile_mean(finals, **options),
        area=statistics.mean(_values(strata, "area"), **options),
        area_middle=statistics.interquartile_mean(_values(strata, "area"), **options),
        std=math.sqrt(float(np.mean(variances))) if variances else None,
        by_task={task: statistics.mean([v], **options) for task, v in of_tasks.items()} if several else {},
        diverged=dict(Counter(run.diverged for run in own if run.diverged is not None)),
        missing=sum(run.missing for run in own),
        against=against,
        tuned=tuned,
    )


def _against(
    arm: Strata,
    baseline: Strata,
    tasks: Sequence[str],
    measure: Measure,
    options: Mapping[str, Any],
    level: Mapping[str, Any],
) -> Against | None:
    common = {
        stratum: seeds
        for stratum, runs in arm.items()
        if (seeds := [seed for seed in runs if seed in baseline.get(stratum, {})])
    }
    if not common:
        return None
    x, y = (
        {name: {seed: side[name][seed] for seed in seeds} for name, seeds in common.items()} for side in (arm, baseline)
    )
    values = {name: (_values(x, name), _values(y, name)) for name in MEASURES}
    differences = {
        name: replace(statistics.paired_difference(*pair, **options), detectable=statistics.detectable(*pair, **level))
        for name, pair in values.items()
    }
    p_value = statistics.paired_p_value(*values[measure], seed=options["seed"])
    return Against(
        pairs=sum(map(len, common.values())),
        final=differences["final"],
        area=differences["area"],
        over_problems=_over_problems(x, y, tasks, options),
        improvement=statistics.probability_of_improvement(*values["final"], paired=True, **options),
        p_value=p_value,
        p_adjusted=p_value,
    )


def _over_problems(x: Strata, y: Strata, tasks: Sequence[str], options: Mapping[str, Any]) -> Estimate | None:
    """None unless all runs of a task have scores of the same problems."""
    tables: tuple[list[Any], list[Any]] = ([], [])
    for stratum, runs in x.items():
        pairs = [(run, y[stratum][seed]) for seed, run in runs.items()]
        for task in tasks if stratum == ALL_TASKS else [stratum]:
            ids = list(pairs[0][0].problems.get(task, {}))
            if not ids or any(set(run.problems.get(task, {})) != set(ids) for pair in pairs for run in pair):
                return None
            for table, side in zip(tables, zip(*pairs, strict=True), strict=True):
                table.append(np.array([[run.problems[task][one] for one in ids] for run in side]))
    # one stratum of several tasks has the same runs in every table
    return statistics.paired_difference_over_problems(*tables, same_runs=len(x) == 1, **options)


def _curves(runs: Runs, confidence: float, seed: int) -> list[Curve]:
    of: dict[tuple[str, str], list[Run]] = {}
    for run in runs.of_tasks:
        of.setdefault((run.arm, run.stratum), []).append(run)
    found = []
    for (arm, task), own in of.items():
        ends = statistics.curve_band([run.scores for run in own], confidence=confidence, seed=seed)
        mean, low, high = (tuple(map(float, values)) for values in ends)
        lines = {run.seed: run.scores for run in own}
        found.append(Curve(arm=arm, task=task, steps=own[0].steps, mean=mean, low=low, high=high, runs=lines))
    return found


def _warnings(
    runs: Runs,
    strata: Mapping[str, Strata],
    compared: Mapping[str, Against],
    baseline: str,
    alpha: float,
    tuning: Sequence[Tuned],
) -> list[str]:
    found = []
    fewest = min(len(of_stratum) for one in strata.values() for of_stratum in one.values())
    if note := statistics.coverage_note(fewest):
        found.append(note)
    others = len(runs.arms) - 1
    if compared:
        pairs = min(one.pairs for one in compared.values())
        least = statistics.smallest_p_value(pairs) * others
        if least > alpha:
            found.append(
                f"no difference can be significant at {alpha:g}, however large it is: the smallest p of {pairs} pairs "
                f"of runs is {statistics.smallest_p_value(pairs):.3g}, before it is adjusted for "
                f"{counted(others, 'comparison')}"
            )
    if early := sum(run.missing for of_stratum in strata[baseline].values() for run in of_stratum.values()):
        found.append(f"{early} of {baseline}, the baseline, ended early and count as 0, which favours all others")
    for arm, one in strata.items():
        if all(len({run.final for run in of.values()}) == 1 < len(of) for of in one.values()):
            found.append(
                f"{arm}: all runs of a task end with the same score; an interval without width is not certainty"
            )
    whole = set(runs.tasks)
    for arm in runs.arms:
        if arm not in strata:
            found.append(f"{arm}: no complete run, so it is in no table")
            continue
        seen = {run.stratum for run in runs.of_tasks if run.arm == arm}
        if lacking := sorted(whole - seen):
            found.append(f"{arm}: no run on {', '.join(lacking)}, so its means are over other tasks than the rest")
        if arm != baseline and arm not in compared:
            found.append(f"{arm}: no seed in common with {baseline}, so there is no difference")
    return found + _warnings_of_tuning(runs, tuning)


def _warnings_of_tuning(runs: Runs, tuning: Sequence[Tuned]) -> list[str]:
    found = []
    budgets = {one.arm: one.runs for one in tuning}
    if tuning and (untuned := [arm for arm in runs.arms if arm not in budgets]):
        found.append(f"not tuned, unlike the others: {', '.join(untuned)}")
    if len(set(budgets.values())) > 1:
        listed = ", ".join(f"{arm} {count}" for arm, count in budgets.items())
        found.append(f"the tuning budgets differ (runs): {listed}")
    used = {run.seed for run in runs.of_tasks}
    for one in tuning:
        for name in one.at_the_end():
            found.append(
                f"{one.arm}: {name} = {one.chosen[name]} is at the end of its grid ({', '.join(one.grid[name])}); a "
                "better value may lie beyond"
            )
        if again := sorted(used & set(one.seeds)):
            found.append(
                f"{one.arm}: tuned on seeds that are compared too ({', '.join(map(str, again))}), where it scores too "
                "well"
            )
    return found
