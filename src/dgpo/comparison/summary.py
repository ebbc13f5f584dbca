"""The summary of a comparison as objects: scores of every method and differences from a baseline, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dgpo.comparison.outcome import MEASURES, Measure
from dgpo.comparison.scored import Cell
from dgpo.runs.results import Estimate

SCHEMA = "dgpo.comparison_summary/1"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """How the setting of an arm was chosen.

    Attributes:
        arm: its label.
        grid: option -> the values that were tried, as text; every combination was a setting.
        chosen: option -> the value of the setting that the runs have.
        runs: number of tuning runs.
        seeds: their seeds.
        criterion: what was largest at the chosen setting.
        diverged: how many of the tuning runs diverged.
    """

    arm: str
    grid: Mapping[str, Sequence[str]]
    chosen: Mapping[str, str]
    runs: int
    seeds: Sequence[int]
    criterion: str
    diverged: int = 0

    def at_the_end(self) -> list[str]:
        """The options whose chosen value is the smallest or largest number of several: a better one may lie beyond."""
        found = []
        for name, values in self.grid.items():
            numbers = [number for number in map(_number, values) if number is not None]
            chosen = _number(self.chosen.get(name, ""))
            if len(numbers) == len(values) > 1 and chosen in (min(numbers), max(numbers)):
                found.append(name)
        return found


@dataclass(frozen=True, kw_only=True)
class Against:
    """An arm minus the baseline, over the seeds that both have.

    Attributes:
        pairs: number of pairs of runs.
        final: difference of the last scores; its `detectable` is the smallest true difference that a comparison with
            the same spread finds, at the level divided by the number of comparisons and with the chance
            `Summary.power`.
        area: the same of the mean scores over training.
        over_problems: `final` with an interval for other seeds and other problems; None without scores by problem.
        improvement: probability that a run of this arm has a higher last score than one of the baseline.
        p_value: sign-flip test of `Summary.measure`.
        p_adjusted: the same, corrected for the number of comparisons (Holm).
    """

    pairs: int
    final: Estimate
    area: Estimate
    over_problems: Estimate | None
    improvement: Estimate
    p_value: float
    p_adjusted: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """An arm.

    Attributes:
        arm: its label.
        runs: number of complete runs.
        start: score before training, mean over runs.
        final: mean last score.
        final_middle: interquartile mean of the last scores.
        area: mean of the mean scores over training.
        area_middle: their interquartile mean.
        std: standard deviation of the last score between seeds, within a task; None for one seed.
        by_task: task -> mean last score, if there are several.
        diverged: reason -> number of runs.
        missing: number of runs that lack evaluations, which count as 0.
        against: difference from the baseline; None for the baseline itself, or without common seeds.
        tuned: how its setting was chosen; None if it was not tuned.
    """

    arm: str
    runs: int
    start: float
    final: Estimate
    final_middle: Estimate
    area: Estimate
    area_middle: Estimate
    std: float | None
    by_task: Mapping[str, Estimate]
    diverged: Mapping[str, int]
    missing: int
    against: Against | None
    tuned: Tuned | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning curve of an arm on a task: mean over seeds and its interval at each step by itself; and every run."""

    arm: str
    task: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a comparison found.

    Attributes:
        baseline: label of the arm that the others are compared with.
        measure: what is tested: "final" or "area". It is to be chosen before the runs.
        methods: one per arm with complete runs.
        tasks: in the order of the outcomes.
        same_runs: whether each run was evaluated on all tasks; otherwise each task has runs of its own.
        seeds: of the complete runs.
        comparisons: number of tests that p-values are adjusted for: the arms besides the baseline.
        alpha: level of all tests together.
        power: chance of finding a difference of the size `detectable`.
        confidence: of the intervals, each by itself.
        curves: one per arm and task.
        incomplete: (arm, task, seed) of runs that are missing or not finished; they count nowhere.
        warnings: one line for everything that limits what the numbers say.
        about: what ran: versions, hardware, commit, configuration; whatever JSON can hold.
    """

    baseline: str
    measure: Measure
    methods: tuple[Method, ...]
    tasks: tuple[str, ...]
    same_runs: bool
    seeds: tuple[int, ...]
    comparisons: int
    alpha: float
    power: float
    confidence: float
    curves: tuple[Curve, ...]
    incomplete: tuple[Cell, ...]
    warnings: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the attributes and the `schema`; fractions, with null for an infinite `detectable`."""
        found = {"schema": SCHEMA, **asdict(self)}
        for method in found["methods"]:
            for name in MEASURES:
                if method["against"] and math.isinf(method["against"][name]["detectable"]):
                    method["against"][name]["detectable"] = None
        return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
