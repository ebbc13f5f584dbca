"""Whether a run learns: its reward, and by how much it has risen, against its own noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.diagnostics.doctor.noise import Mean, below, falling, recent, rising, start
from dgpo.runs.log import Log, Series

LONG_ENOUGH = 10
"""Points from which a rise can be told: three of them at the start, and five that are recent."""

FLAT_FROM = 30
"""Points from which a reward can be called flat: it takes more to say that nothing happened."""

FLAT = 0.25
"""Rise in standard deviations of a response's reward, below which it counts as none. A run of 0/1 rewards that goes
from 0.3 to 0.4 has risen by 0.22; the demo rises by 0.7."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The reward at the start and now.

    Attributes:
        reward: the series; empty if none was logged.
        start, now: its level over the first tenth and over the last third, with 98 % intervals.
        rise: the difference.
        spread: standard deviation of the reward of a response, as far as the log tells. Where it has none, that of the
            mean reward from step to step, which is not larger.
        lower: whether it is only that.
        trend: "rises" if the rise is more than noise; "flat" if it is not, and its interval is below `FLAT` standard
            deviations of a response; "falls" if it is less than 0 by more than noise; otherwise "unknown".
        hardly: whether the rise is certainly less than `FLAT` standard deviations, be it more than noise or not.
    """

    reward: Series
    start: Mean
    now: Mean
    rise: Mean
    spread: float
    trend: Literal["rises", "flat", "falls", "unknown"]
    hardly: bool = False
    lower: bool = False

    @property
    def learns(self) -> bool:
        return self.trend == "rises"

    def __str__(self) -> str:
        if not len(self.reward):
            return "no reward in the log"
        if len(self.reward) < LONG_ENOUGH:
            return f"{self.reward}; too few points for a trend"
        return f"{self.reward.key} {self.start.value:.3g} at the start, {self.now} over the last third"


NOTHING = Mean(value=0.0, low=-float("inf"), high=float("inf"))


def progress(log: Log) -> Progress:
    """How the reward of a log has moved."""
    reward = log["reward"]
    if len(reward) < LONG_ENOUGH:
        return Progress(reward=reward, start=NOTHING, now=NOTHING, rise=NOTHING, spread=0.0, trend="unknown")
    first, last = start(reward.values), recent(reward.values, least=5)
    rise = last.less(first)
    spread = _spread(log, reward)
    trend: Literal["rises", "flat", "falls", "unknown"] = "unknown"
    if rising(rise):
        trend = "rises"
    elif spread > 0 and below(rise, FLAT * spread, FLAT_FROM):
        trend = "flat"
    elif falling(rise):
        trend = "falls"
    hardly = trend == "falls" or (spread > 0 and bool(below(rise, FLAT * spread, LONG_ENOUGH)))
    return Progress(
        reward=reward,
        start=first.now,
        now=last.now,
        rise=rise.now,
        spread=spread,
        trend=trend,
        hardly=hardly,
        lower=not len(log["reward_std"]),
    )


def _spread(log: Log, reward: Series) -> float:
    """Within groups, from the log, and between steps; the variances add up. A batch of few groups shows the latter.

    TRL logs the deviation over all responses of a step by reward function, which holds that between prompts as well.
    Without any of them what is left is less than the whole, so that no run counts as flat that would not with it.
    """
    within = log["reward_std"]
    between = torch.tensor(reward.values, dtype=torch.float64).var(correction=0)
    total = float(((_mean(within) ** 2 if len(within) else 0.0) + between).sqrt())
    functions = [log.series(one.key.removesuffix("/mean") + "/std") for one in log.reward_functions.values()]
    if len(functions) == 1 and len(functions[0]):
        total = max(total, float(_mean(functions[0])))
    return total


def _mean(series: Series) -> Tensor:
    return torch.tensor(series.values, dtype=torch.float64).mean()
