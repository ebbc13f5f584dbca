"""The main result of a run: what evaluations say of its model before and after training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dgpo.evaluation.compare import compare
from dgpo.report.evaluations import Results
from dgpo.runs.log import Log
from dgpo.runs.results import Estimate

Z = 1.96
"""Standard errors on either side of a 95 % interval."""

LOGGED = re.compile(r"eval/(?P<benchmark>.+)/(?P<estimate>greedy|(?:avg|pass|best|maj)@\d+)")
"""A benchmark's estimate, as the trainer logs it with `eval_benchmarks`; its standard error is `..._se`."""

HELD_OUT = "eval_reward"
"""Mean reward on the evaluation data, as TRL logs it, without an interval."""


@dataclass(frozen=True, kw_only=True)
class End:
    """One end of a change: a value with its 95 % interval, if that is known.

    Attributes:
        value: a fraction; a mean reward of `HELD_OUT`.
        low: lower end of the interval; None if it is not known.
        high: upper end.
        update: after which update; None for a model that was evaluated by itself.
    """

    value: float
    low: float | None = None
    high: float | None = None
    update: int | None = None

    @classmethod
    def of(cls, estimate: Estimate) -> End:
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one estimate of one benchmark came to.

    Attributes:
        benchmark: its name; `HELD_OUT` for the reward on held-out data.
        estimate: "avg@n", "greedy", "pass@k", ...; empty for a reward.
        before: of the model that training started from, or of the earliest evaluation; None if there is one end only.
        after: of the trained model, or of the latest evaluation.
        difference: after - before, paired by problem, with its 95 % interval; None where problems cannot be paired.
        problems: how many there are; None if that is not known.
    """

    benchmark: str
    estimate: str
    before: End | None
    after: End
    difference: Estimate | None = None
    problems: int | None = None

    @property
    def name(self) -> str:
        """As the page names it."""
        return "held-out reward" if self.benchmark == HELD_OUT else f"{self.benchmark} {self.estimate}"


def evaluated(info: Mapping[str, Any], results: Iterable[Results]) -> list[Change]:
    """The results of `dgpo eval` that are about the model of a run, by benchmark; the main estimate first.

    Args:
        info: `run.json`.
        results: in the order in which they were given.
    """
    return [
        change
        for benchmark, (first, last) in compared(info, results).items()
        for change in _changes(benchmark, first, last)
    ]


def compared(info: Mapping[str, Any], results: Iterable[Results]) -> dict[str, tuple[Results | None, Results]]:
    """Benchmark -> the results before training, if they are there, and those after it; without the latter, none.

    Results belong to a run by the name of their model: that of the run's model before training, or its output folder,
    a checkpoint in it, or `FOLDER at update N` after it. Of several, the latest update counts.
    """
    before: dict[str, Results] = {}
    after: dict[str, tuple[float, Results]] = {}
    for result in results:
        update = update_of(info, result.model)
        for benchmark in result.estimates:
            if update == 0:
                before.setdefault(benchmark, result)
            elif update is not None and (benchmark not in after or update >= after[benchmark][0]):
                after[benchmark] = (update, result)
    return {benchmark: (before.get(benchmark), last) for benchmark, (_, last) in after.items()}


def update_of(info: Mapping[str, Any], model: str) -> float | None:
    """After which update of a run a model was evaluated: 0 before training, infinite for the final one.

    None for a model that is not of this run.
    """
    start = str((info.get("model") or {}).get("name") or "")
    output = str((info.get("config") or {}).get("output_dir") or "")
    name, at, number = model.rpartition(" at update ")
    if at and number.isdigit() and _same(name, output):
        return int(number)
    if (match := re.fullmatch(r"(.+)/checkpoint-(\d+)/?", model)) and _same(match[1], output):
        return int(match[2])
    if _same(model, output):
        return float("inf")
    return 0 if _same(model, start) else None


def logged(log: Log) -> list[Change]:
    """Evaluations during training, from the earliest to the latest: benchmarks, or else the held-out reward."""
    found = []
    for key in log.keys:
        if (match := LOGGED.fullmatch(key)) is None or not len(log.series(key)):
            continue
        series, errors = log.series(key), log.series(f"{key}_se").at
        ends = [
            End(value=value, update=step)
            if (error := errors.get(step)) is None
            else End(value=value, low=max(value - Z * error, 0.0), high=min(value + Z * error, 1.0), update=step)
            for step, value in (*list(series.at.items())[:1], *list(series.at.items())[-1:])
        ]
        before = ends[0] if len(series) > 1 else None
        found.append(Change(benchmark=match["benchmark"], estimate=match["estimate"], before=before, after=ends[-1]))
    if not found and len(series := log.series(HELD_OUT)):
        first, last = (End(value=series.values[at], update=series.steps[at]) for at in (0, -1))
        found.append(Change(benchmark=HELD_OUT, estimate="", before=first if len(series) > 1 else None, after=last))
    return _main_first(found)


def _shown(estimates: Iterable[str]) -> list[str]:
    """Those of a headline: the accuracy of a sample and of greedy answers, and pass@k of the largest k."""
    names = list(estimates)
    passed = [name for name in names if name.startswith("pass@") and name != "pass@1"]
    most = max(passed, key=lambda name: int(name.removeprefix("pass@")), default=None)
    return [name for name in names if name == most or name.startswith(("avg@", "greedy")) or not name]


def _changes(benchmark: str, first: Results | None, last: Results) -> list[Change]:
    problems, estimates = last.estimates[benchmark]
    earlier = {} if first is None else first.estimates[benchmark][1]
    differences: dict[str, Estimate] = {}
    if first is not None:
        try:
            # the resamples are of a test and of an interval that are not shown
            rows = compare(*(_alone(one.document, benchmark) for one in (first, last)), resamples=100).rows
            differences = {row.metric: row.paired.difference for row in rows}
        except ValueError:  # other problems, or none in these files: each end has its own interval
            pass
    found = [
        Change(
            benchmark=benchmark,
            estimate=name,
            before=End.of(earlier[name]) if name in earlier else None,
            after=End.of(estimate),
            difference=differences.get(name) if name in earlier else None,
            problems=problems,
        )
        for name, estimate in estimates.items()
    ]
    return _main_first(found)


def _alone(document: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    return {**document, "benchmarks": {benchmark: document["benchmarks"][benchmark]}}


def _main_first(changes: Sequence[Change]) -> list[Change]:
    """By benchmark, with the mean over samples first, which has the least noise; only what `_shown` names."""
    order = list(dict.fromkeys(change.benchmark for change in changes))
    shown = {name: _shown(one.estimate for one in changes if one.benchmark == name) for name in order}
    kept = [change for change in changes if change.estimate in shown[change.benchmark]]
    return sorted(kept, key=lambda change: (order.index(change.benchmark), not change.estimate.startswith("avg@")))


def _same(one: str, other: str) -> bool:
    """Whether two names are of one model: equal, or one the end of the other's absolute path."""
    if not one or not other:
        return False
    paths = [PurePath(os.path.normpath(name)) for name in (one, other)]
    if paths[0] == paths[1]:
        return True
    short, long = sorted(paths, key=lambda path: path.is_absolute())
    parts = short.parts
    # one word is not enough: many folders are called `model`
    return len(parts) > 1 and not short.is_absolute() and long.is_absolute() and long.parts[-len(parts) :] == parts
