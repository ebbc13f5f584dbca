"""From outcomes to runs that can be compared: which are complete, and what the others count as."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dgpo.comparison.outcome import Outcome

ALL_TASKS = "mean over tasks"
"""Stratum of runs that were evaluated on several tasks each."""

Cell = tuple[str, str, int]
"""(arm, task, seed)"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A complete run.

    Attributes:
        arm: its arm.
        seed: its seed.
        stratum: its task; `ALL_TASKS` if it was evaluated on several, then scores are means over them.
        steps: of the evaluations.
        scores: of each evaluation.
        final: the last score.
        area: mean score over training (`Outcome.area`).
        problems: task -> problem -> score in the last evaluation; a task without known scores is left out.
        diverged: why it counts as diverged, or None.
        missing: whether evaluations were missing, which count as 0.
    """

    arm: str
    seed: int
    stratum: str
    steps: tuple[int, ...]
    scores: tuple[float, ...]
    final: float
    area: float
    problems: Mapping[str, Mapping[str, float]]
    diverged: str | None
    missing: bool


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All runs of a comparison.

    Attributes:
        complete: the complete ones, in the order given.
        of_tasks: the same on each task by itself.
        incomplete: (arm, task, seed) of those that are missing or did not reach the last evaluation without being
            diverged. They have no score and are left out.
        arms: in the order given.
        tasks: in the order given.
    """

    complete: list[Run]
    of_tasks: list[Run]
    incomplete: list[Cell]
    arms: list[str]
    tasks: list[str]

    def strata(self, arm: str) -> dict[str, dict[int, Run]]:
        """Stratum -> seed -> the complete run of an arm."""
        found: dict[str, dict[int, Run]] = {}
        for run in self.complete:
            if run.arm == arm:
                found.setdefault(run.stratum, {})[run.seed] = run
        return found


def runs_of(outcomes: Sequence[Outcome], *, same_runs: bool, cells: Iterable[Cell] = ()) -> Runs:
    """Group outcomes into runs, and name those that are not complete.

    Args:
        outcomes: one per run and task.
        same_runs: whether outcomes of one arm and seed on several tasks are evaluations of one run.
        cells: what there should be; besides, every arm should have every task and seed that another one has.

    Raises:
        ValueError: no outcomes; two with the same arm, task and seed; a task that was evaluated at different steps.
    """
    if not outcomes:
        raise ValueError("there are no outcomes; expected at least one finished run of every arm")
    found: dict[Cell, Outcome] = {}
    for outcome in outcomes:
        cell = (outcome.arm, outcome.task, outcome.seed)
        if cell in found:
            raise ValueError(f"{outcome}: given twice; expected one outcome for each arm, task and seed")
        found[cell] = outcome
    arms, tasks = list(dict.fromkeys(o.arm for o in outcomes)), list(dict.fromkeys(o.task for o in outcomes))
    whole: dict[Cell, Run] = {}
    incomplete: set[Cell] = set()
    for task in tasks:
        of_task = {cell: outcome for cell, outcome in found.items() if cell[1] == task}
        planned = max((outcome.steps for outcome in of_task.values()), key=lambda steps: steps[-1])
        problems = {problem for outcome in of_task.values() for problem in outcome.problems}
        for cell, outcome in of_task.items():
            if outcome.steps != planned[: len(outcome.steps)]:
                raise ValueError(
                    f"{outcome}: evaluated at {_shown(outcome.steps)}, another run at {_shown(planned)}; expected the "
                    "same steps in every run of a task"
                )
            if outcome.steps != planned and outcome.diverged is None:
                incomplete.add(cell)
            else:
                whole[cell] = _run(outcome, planned, problems)
        seeds = {seed for _, _, seed in of_task}
        incomplete |= {(arm, task, seed) for arm in arms for seed in seeds} - set(of_task)
    incomplete |= set(cells) - set(found)
    runs = list(whole.values())
    if same_runs:
        of_run: dict[tuple[str, int], list[Run]] = {}
        for run in runs:
            of_run.setdefault((run.arm, run.seed), []).append(run)
        runs = [_over_tasks(one) for one in of_run.values() if len(one) == len(tasks)]
    order = {name: place for place, name in enumerate([*arms, *tasks])}
    last = len(order)
    return Runs(
        complete=runs,
        of_tasks=list(whole.values()),
        incomplete=sorted(incomplete, key=lambda cell: (order.get(cell[0], last), order.get(cell[1], last), cell[2])),
        arms=arms,
        tasks=tasks,
    )


def _run(outcome: Outcome, planned: tuple[int, ...], problems: set[str]) -> Run:
    full = outcome.until(planned)
    missing = full is not outcome
    scores = dict.fromkeys(sorted(problems), 0.0) if missing else dict(full.problems)
    return Run(
        arm=full.arm,
        seed=full.seed,
        stratum=full.task,
        steps=full.steps,
        scores=full.scores,
        final=full.final,
        area=full.area,
        problems={full.task: scores} if scores else {},
        diverged=full.diverged,
        missing=missing,
    )


def _over_tasks(runs: Sequence[Run]) -> Run:
    """One run on several tasks: means over tasks."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    if others := [run for run in runs if run.steps != first.steps]:
        raise ValueError(
            f"{first.arm}, seed {first.seed}: evaluated at {_shown(first.steps)} on {first.stratum} and at "
            f"{_shown(others[0].steps)} on {others[0].stratum}; expected the same steps on every task of a run"
        )
    return replace(
        first,
        stratum=ALL_TASKS,
        scores=tuple(statistics.fmean(at) for at in zip(*(run.scores for run in runs), strict=True)),
        final=statistics.fmean(run.final for run in runs),
        area=statistics.fmean(run.area for run in runs),
        problems={task: scores for run in runs for task, scores in run.problems.items()},
        diverged=next((run.diverged for run in runs if run.diverged is not None), None),
        missing=any(run.missing for run in runs),
    )


def _shown(steps: Sequence[int]) -> str:
    words = [str(step) for step in steps]
    return ", ".join(words if len(words) <= 6 else [*words[:3], "...", words[-1]])
