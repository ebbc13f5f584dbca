"""Runs that broke down, as README.md defines it, and what foresees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from recorded import Stack

SMOOTHED = 16
"""Updates whose mean reward is the smoothed one."""
GAIN = 0.1
"""Smallest gain that can be lost, and smallest start."""
FALL, RECOVERY = 0.5, 0.75
"""A collapse leaves less than `FALL` of the gain (or of the start), and `RECOVERY` of it never comes back."""
WORSE, STALLED = 0.8, 1.2
"""Final score over the first: below is worse than the start; below is stalled if no group has spread."""

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


def events(stack: Stack, fall: float = FALL) -> list[Event]:
    """What became of each member of a stack; `fall` is the sensitivity of the definition."""
    collapsed = collapses(stack.metrics["reward"], stack.scores[0], fall)
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
    level = smoothed(reward)
    peak = np.fmax.accumulate(level, axis=0)
    # the best that is still to come
    later = np.full_like(level, -np.inf)
    later[:-1] = np.fmax.accumulate(level[:0:-1], axis=0)[::-1]
    start = start.astype(np.float64)
    gain = peak - start
    lost = (gain >= GAIN) & (level < start + fall * gain) & (later < start + RECOVERY * gain)
    lost |= (start >= GAIN) & (level < fall * start) & (later < RECOVERY * start)
    return np.where(lost.any(0), lost.argmax(0), -1)
