"""Which runs collapsed, as README.md defines it, and what foresees a collapse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from recorded import RESULTS, Stack, stacks
from signs import HORIZONS, STATISTICS, Runs, aurocs, danger, doctor, drift_limits, held_out, seen_afterwards

from dgpo.files import write_json_atomic

SMOOTHED = 16
"""Updates whose mean reward is the smoothed one."""
GAIN = 0.1
"""Smallest gain that can be lost, and smallest start."""
FALL, RECOVERY = 0.5, 0.75
"""A collapse leaves less than `FALL` of the gain (or of the start), and `RECOVERY` of it never comes back."""
WORSE, STALLED = 0.8, 1.2
"""Final score over the first: below is worse than the start; below is stalled if no group has spread."""
SENSITIVITY = (0.25, 0.75)
"""Other shares than `FALL`."""
SERIES = ("reward", *(metric for metric, _ in STATISTICS.values()))
"""Metrics that are recorded for every update and needed here."""

Kind = Literal["collapsed", "non-finite", "worse", "stalled", "none"]


@dataclass(frozen=True)
class Event:
    """What became of one run; a run may be several of these.

    Attributes:
        collapsed: the update at which it collapsed; None if it did not.
        non_finite: the first update whose gradient was not finite; None if all were.
        worse: the final score is below `WORSE` of the first.
        stalled: the final score is below `STALLED` of the first, and no group had spread in the last updates.
    """

    collapsed: int | None
    non_finite: int | None
    worse: bool
    stalled: bool

    @property
    def kind(self) -> Kind:
        """The first that applies."""
        if self.collapsed is not None:
            return "collapsed"
        if self.non_finite is not None:
            return "non-finite"
        return "worse" if self.worse else "stalled" if self.stalled else "none"


def events(stack: Stack) -> list[Event]:
    """What became of each member of a stack."""
    collapsed = collapses(stack.metrics["reward"], stack.scores[0])
    broken = ~np.isfinite(stack.metrics["grad_norm"])
    # a gradient that is not finite has no finite norm; a finite one may overflow in its norm, and is not counted
    first = np.where(stack.skipped > 0, broken.argmax(0), -1)
    spread = (stack.metrics["informative"][-SMOOTHED:] > 0).any(0)
    start, final = stack.scores[0], stack.scores[-1]
    return [
        Event(
            collapsed=None if collapsed[i] < 0 else int(collapsed[i]),
            non_finite=None if first[i] < 0 else int(first[i]),
            # not (>=): a score that is not a number is worse
            worse=not final[i] >= WORSE * start[i],
            stalled=bool(final[i] < STALLED * start[i] and not spread[i]),
        )
        for i in range(len(start))
    ]


def smoothed(reward: NDArray[np.floating]) -> NDArray[np.float64]:
    """[T, S] mean of each value and the `SMOOTHED` - 1 before it; NaN where there are fewer."""
    total = np.cumsum(reward, axis=0, dtype=np.float64)
    total[SMOOTHED:] -= total[:-SMOOTHED].copy()
    total[: SMOOTHED - 1] = np.nan
    return total / SMOOTHED


def collapses(reward: NDArray[np.floating], start: NDArray[np.floating], fall: float = FALL) -> NDArray[np.int64]:
    """[S] the first update at which the smoothed reward has fallen and after which it never recovers; -1 if none.

    Args:
        reward: [T, S] of fresh samples.
        start: [S] score before the first update.
        fall: share of the gain over the start, or of the start, below which the reward has fallen.
    """
    return _fallen(reward, start, fall)[0]


def _fallen(
    reward: NDArray[np.floating], start: NDArray[np.floating], fall: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`collapses`, and [S] the reward below which each had fallen there; NaN if none."""
    level = smoothed(reward)
    peak = np.fmax.accumulate(level, axis=0)
    # the best that is still to come
    later = np.full_like(level, -np.inf)
    later[:-1] = np.fmax.accumulate(level[:0:-1], axis=0)[::-1]
    start = start.astype(np.float64)
    gain = peak - start
    of_gain = (gain >= GAIN) & (level < start + fall * gain) & (later < start + RECOVERY * gain)
    of_start = (start >= GAIN) & (level < fall * start) & (later < RECOVERY * start)
    lost = of_gain | of_start
    at = np.where(lost.any(0), lost.argmax(0), -1)
    members = np.arange(len(start))
    line = np.where(of_gain[at, members], start + fall * gain[at, members], fall * start)
    return at, np.where(at < 0, np.nan, line)


def flat(found: list[Stack]) -> Runs:
    """All runs of all stacks."""

    def joined(each: Callable[[Stack], Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(each(stack)) for stack in found])

    def repeated(each: Callable[[Stack], Any]) -> NDArray[Any]:
        return joined(lambda stack: np.full(len(stack.seeds), each(stack)))

    reward, start = joined(lambda s: s.metrics["reward"].T), joined(lambda s: s.scores[0])
    at, line = _fallen(reward.T, start, FALL)
    broken = joined(lambda s: s.skipped) > 0
    return Runs(
        task=repeated(lambda s: s.arm.task),
        k=repeated(lambda s: s.arm.k),
        rate=joined(lambda s: s.rates),
        collapsed=at,
        healthy=(at < 0) & ~broken & (np.nanmax(smoothed(reward.T), axis=0) - start >= GAIN),
        line=line,
        scores=joined(lambda s: s.scores.T).astype(np.float64),
        metrics={name: joined(lambda s, name=name: s.metrics[name].T) for name in SERIES},
    )


def breakdown(found: list[Stack]) -> list[dict[str, Any]]:
    """What became of the runs, by task, staleness, method, phase and learning rate."""
    rows = []
    for stack in found:
        primary = events(stack)
        collapsed = {fall: collapses(stack.metrics["reward"], stack.scores[0], fall) >= 0 for fall in SENSITIVITY}
        for rate in sorted(set(stack.rates.tolist())):
            mine = [i for i, one in enumerate(stack.rates) if one == rate]
            rows.append(
                {
                    "task": stack.arm.task,
                    "k": stack.arm.k,
                    "method": stack.arm.method,
                    "phase": stack.phase,
                    "rate": rate,
                    "runs": len(mine),
                    "collapsed": sum(primary[i].collapsed is not None for i in mine),
                    "non-finite": sum(primary[i].non_finite is not None for i in mine),
                    "worse": sum(primary[i].worse for i in mine),
                    "stalled": sum(primary[i].stalled for i in mine),
                    **{f"collapsed, {fall}": int(collapsed[fall][mine].sum()) for fall in SENSITIVITY},
                }
            )
    return rows


def analyse(results: Path = RESULTS) -> dict[str, Any]:
    """Everything about collapses, from the recorded runs; minutes."""
    found = stacks(results)
    runs, rng = flat(found), np.random.default_rng(0)
    values = danger(runs)
    return {
        "counts": breakdown(found),
        "healthy": {task: len(runs.sound(task)) for task in runs.tasks},
        "fallen": fallen_before(runs),
        "auroc": aurocs(runs, values, rng),
        "held out": held_out(runs, values, rng),
        "doctor": doctor(runs, rng),
        "drift": drift_limits(runs),
        "afterwards": seen_afterwards(runs),
    }


def fallen_before(runs: Runs) -> list[dict[str, Any]]:
    """By staleness and horizon: collapses, and of how many the policy had fallen already, which samples hid."""
    rows = []
    for k in sorted(set(runs.k.tolist())):
        for horizon in HORIZONS:
            mine, at = runs.events(horizon)
            mine, at = mine[runs.k[mine] == k], at[runs.k[mine] == k]
            rows.append({"k": k, "horizon": horizon, "events": len(mine), "fallen": int(runs.fallen(mine, at).sum())})
    return rows


def write(results: Path = RESULTS) -> None:
    """`analyse` to collapse.json."""
    write_json_atomic(results / "collapse.json", _without_nan(analyse(results)))


def _without_nan(value: Any) -> Any:
    """Values for JSON: rounded to four digits, None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    write()
