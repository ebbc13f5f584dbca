"""What foresees a collapse: the statistics and rules that README.md names, at the horizons that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from foresight import (
    FEWEST,
    MEDIAN_OF,
    NOTHING,
    Floats,
    Ints,
    alarms,
    auroc,
    counts,
    dangerous,
    mean,
    onsets,
    pairs,
    share,
    threshold,
)
from numpy.typing import NDArray
from recorded import EVALUATED_EVERY

from dgpo.diagnostics.doctor import RULES, Case, Rule
from dgpo.diagnostics.doctor.rules_weights import FAR_FROM_OLD
from dgpo.runs.log import KEYS, Log

HORIZONS = (5, 20, 50)
"""Updates before the collapse."""
STATISTICS = {
    "ESS of w": ("ess", -1),
    "ESS of the ratios": ("ratio_ess", -1),
    "entropy": ("entropy", -1),
    "KL(π_old, π)": ("kl_old", 1),
    "gradient norm": ("grad_norm", 1),
    "largest weight": ("largest_weight", 1),
}
"""Label -> metric, and 1 if large values are dangerous, -1 if small ones are; fixed before the runs."""
RECORDED = {
    "reward": "reward",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "kl_old": "kl_old",
    "ess": "ess",
    "weight_max": "largest_weight",
}
"""Quantity of the doctor -> metric of the atlas. The share of weights that are 0 is not recorded: where a hard clip
stops tokens, `concentration` takes their zeros for a low ess."""
FORESEEING = ("entropy_falling", "entropy_rising", "grad_spike", "drift", "concentration")
"""Rules that are held against a collapse that is still to come."""
SEEING = "reward_fell"
"""The rule that should find one afterwards."""
LIMITS = (0.02, 0.05, FAR_FROM_OLD, 0.2, 0.5, 1.0, 2.0)
"""KL to π_old in nats per token; the third is the doctor's."""
CHECKED_EVERY = 32
"""The rules are asked about healthy runs after every so many updates."""
ALL = "all"
CONTROLS = ("none", "position", "position, task and learning rate")
"""What an event and the updates that it is compared with have in common: with "position" also the staleness k."""


@dataclass(frozen=True)
class Runs:
    """All recorded runs, R of them, with T updates each.

    Attributes:
        task, k, rate: [R].
        collapsed: [R] update of the collapse, -1 if there was none.
        healthy: [R] no collapse, no gradient that was not finite, and a smoothed reward 0.1 above the start.
        line: [R] reward below which the run had collapsed; NaN if it did not.
        scores: [R, 17] evaluations.
        metrics: name -> [R, T].
    """

    task: NDArray[np.str_]
    k: Ints
    rate: Floats
    collapsed: Ints
    healthy: NDArray[np.bool_]
    line: Floats
    scores: Floats
    metrics: Mapping[str, NDArray[np.float32]]

    def events(self, horizon: int, task: str = ALL) -> tuple[Ints, Ints]:
        """[P] runs that collapsed late enough to have a value `horizon` updates before, and [P] that update."""
        runs = np.flatnonzero((self.collapsed - horizon >= MEDIAN_OF - 1) & self._of(task))
        return runs, self.collapsed[runs] - horizon

    def sound(self, task: str = ALL) -> Ints:
        """[N] healthy runs."""
        return np.flatnonzero(self.healthy & self._of(task))

    def fallen(self, runs: Ints, at: Ints) -> NDArray[np.bool_]:
        """Whether the policy itself was below the line at its last evaluation up to this update.

        Samples are drawn once per generation, so that their reward shows a collapse up to k updates later.
        """
        return self.scores[runs, at // EVALUATED_EVERY] < self.line[runs]

    @property
    def tasks(self) -> tuple[str, ...]:
        """`ALL` and every task."""
        return (ALL, *dict.fromkeys(self.task.tolist()))

    def _of(self, task: str) -> NDArray[np.bool_]:
        return np.ones(len(self.task), dtype=bool) if task == ALL else self.task == task

    def labels(self, control: str) -> tuple[Ints | None, Ints | None]:
        """Label and period of `pairs`."""
        if control == "none":
            return None, None
        columns = (self.k,) if control == "position" else (self.k, self.task, self.rate)
        codes = [np.unique(column, return_inverse=True)[1] for column in columns]
        return np.unique(np.stack(codes, 1), axis=0, return_inverse=True)[1].ravel(), self.k


def danger(runs: Runs) -> dict[str, Floats]:
    """Statistic -> [R, T] values, larger means more dangerous."""
    return {label: dangerous(runs.metrics[name], sign) for label, (name, sign) in STATISTICS.items()}


def aurocs(runs: Runs, values: Mapping[str, Floats], rng: np.random.Generator) -> list[dict[str, Any]]:
    """AUROC of every statistic at every horizon, over all tasks and in each, under every control."""
    found = []
    healthy = runs.sound()
    # the same resamples for every statistic
    drawn = {task: counts(rng, len(runs.sound(task))) for task in runs.tasks if len(runs.sound(task))}
    for horizon in HORIZONS:
        events, at = runs.events(horizon)
        unseen = ~runs.fallen(events, at)
        for control in CONTROLS:
            labels = runs.labels(control)
            for label, series in values.items():
                compared = pairs(series, events, at, healthy, *labels)
                for task in runs.tasks:
                    mine = np.isin(events, runs.events(horizon, task)[0])
                    row = {"statistic": label, "horizon": horizon, "task": task, "control": control}
                    row |= {"events": int(mine.sum()), "auroc": asdict(NOTHING), "not yet fallen": asdict(NOTHING)}
                    if mine.sum() >= FEWEST and task in drawn:
                        block = compared.of(mine, np.isin(healthy, runs.sound(task)))
                        shares = block.shares(np.ones((block.below.shape[1], 1), dtype=np.float32))[:, 0]
                        resampled = block.shares(drawn[task])
                        row["auroc"] = asdict(auroc(shares, resampled, rng))
                        if (ahead := unseen[mine]).sum() >= FEWEST:
                            row["not yet fallen"] = asdict(auroc(shares[ahead], resampled[ahead], rng))
                    found.append(row)
    return found


def held_out(runs: Runs, values: Mapping[str, Floats], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The threshold that catches `CAUGHT` of the events of the other tasks, in each task with enough events."""
    found = []
    for task, horizon in product(runs.tasks, HORIZONS):
        if task == ALL:
            continue
        events, at = runs.events(horizon, task)
        others, before = runs.events(horizon)
        elsewhere = runs.task[others] != task
        if min(len(events), elsewhere.sum()) < FEWEST or len(runs.sound(task)) == 0:
            continue
        for label, series in values.items():
            limit = threshold(series[others[elsewhere], before[elsewhere]])
            alarm = alarms(limit, series[events, at], series[runs.sound(task)], rng)
            row = {"statistic": label, "sign": STATISTICS[label][1], "horizon": horizon, "task": task}
            found.append(row | asdict(alarm))
    return found


def named(names: Sequence[str]) -> list[Rule]:
    """The rules with these names."""
    rules = {rule.name: rule for rule in RULES}
    return [rules[name] for name in names]


def log_of(metrics: Mapping[str, NDArray[np.floating]]) -> Log:
    """The log of a run with metrics [T], one line per update, as `DGPOTrainer` would name them."""
    columns = [metrics[ours].astype(float).tolist() for ours in RECORDED.values()]
    keys = [KEYS[quantity][0] for quantity in RECORDED]
    lines = zip(*columns, strict=True)
    return Log(rows=tuple((u, dict(zip(keys, line, strict=True))) for u, line in enumerate(lines)))


def warned(rules: Sequence[Rule], log: Log, updates: int) -> list[bool]:
    """Which rules give a warning or an error, asked after so many updates; a note is no alarm."""
    case = Case(log=Log(rows=log.rows[:updates]))
    return [(finding := rule(case)) is not None and finding.severity != "note" for rule in rules]


def doctor(runs: Runs, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What the doctor's rules say, asked `horizon` updates before a collapse, and again and again of healthy runs."""
    rules = named(FORESEEING)
    healthy = {int(run): _asked(rules, _log(runs, run), runs) for run in runs.sound()}
    logs = {int(run): _log(runs, run) for run in np.flatnonzero(runs.collapsed >= 0)}
    found = []
    for task, horizon in product(runs.tasks, HORIZONS):
        events, at = runs.events(horizon, task)
        # update `at` is the last one that is known
        fired = [warned(rules, logs[int(e)], int(t) + 1) for e, t in zip(events, at, strict=True)]
        asked = np.array([healthy[int(run)] for run in runs.sound(task)], dtype=bool)
        for i, rule in enumerate(FORESEEING):
            said = asked[:, :, i] if len(asked) else np.zeros((0, 1), dtype=bool)
            found.append(
                {
                    "rule": rule,
                    "horizon": horizon,
                    "task": task,
                    "caught": asdict(share(np.array([each[i] for each in fired], dtype=bool))),
                    "alarms": asdict(mean(onsets(said), rng)),
                    "alarmed": asdict(share(said.any(1))),
                }
            )
    return found


def drift(kl: NDArray[np.floating]) -> Floats:
    """[R, T] KL to π_old per update -> what the rule `drift` compares with its limit, after every update.

    The mean over the log so far or over its last third, whichever is larger.
    """
    total = np.concatenate([np.zeros((len(kl), 1)), np.cumsum(kl, axis=1, dtype=np.float64)], axis=1)
    updates = np.arange(1, kl.shape[1] + 1)
    third = np.minimum(np.maximum(3, updates // 3), updates)
    found: Floats = np.maximum(total[:, 1:] / updates, (total[:, 1:] - total[:, updates - third]) / third)
    return found


def drift_limits(runs: Runs) -> list[dict[str, Any]]:
    """What the rule `drift` would catch, and whom it would blame, with other limits than its own."""
    far = drift(runs.metrics["kl_old"])
    sound = runs.sound()
    found = []
    for limit in LIMITS:
        ever = (far >= limit).any(1)
        crossed = (far >= limit).argmax(1)
        row: dict[str, Any] = {"limit": limit, "alarmed": asdict(share(ever[sound]))}
        for horizon in HORIZONS:
            events, at = runs.events(horizon)
            above = far[events, at] >= limit
            row[f"caught {horizon} before"] = asdict(share(above))
            row[f"caught {horizon} before, not yet fallen"] = asdict(share(above[~runs.fallen(events, at)]))
        row["collapse after it"] = asdict(share(runs.collapsed[ever] > crossed[ever]))
        row["collapse without it"] = asdict(share(runs.collapsed[~ever] >= 0))
        found.append(row)
    return found


def seen_afterwards(runs: Runs) -> list[dict[str, Any]]:
    """How many of the collapsed runs the doctor finds in the whole log, and how many healthy ones it blames."""
    (rule,) = named([SEEING])
    found = []
    for task in runs.tasks:
        both = {"collapsed": runs.events(0, task)[0], "healthy": runs.sound(task)}
        said = {
            kind: np.array([warned([rule], _log(runs, run), runs.metrics["reward"].shape[1])[0] for run in some])
            for kind, some in both.items()
        }
        found.append({"rule": SEEING, "task": task} | {kind: asdict(share(those)) for kind, those in said.items()})
    return found


def _asked(rules: list[Any], log: Log, runs: Runs) -> list[list[bool]]:
    return [warned(rules, log, n) for n in range(CHECKED_EVERY, runs.metrics["reward"].shape[1] + 1, CHECKED_EVERY)]


def _log(runs: Runs, run: int) -> Log:
    return log_of({name: values[run] for name, values in runs.metrics.items()})
