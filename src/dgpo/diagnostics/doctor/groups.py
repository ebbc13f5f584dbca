"""What the log tells about the groups: the spread of their rewards, and how many have none."""

from __future__ import annotations

from dgpo.diagnostics.doctor.case import Case
from dgpo.runs.log import Series

ZERO = 1e-6
"""Advantages below this are rounding errors; so are spreads below this times the reward, for rewards above 1 (float32
has seven digits)."""


def spread(case: Case) -> Series:
    """The standard deviation of the rewards, or their range if only that is logged."""
    if len(found := case.log["reward_std"]):
        return found
    high, low = case.log["reward_max"], case.log["reward_min"]
    if high.steps != low.steps:
        return Series()
    values = tuple(a - b for a, b in zip(high.values, low.values, strict=True))
    return Series(key=f"{high.key} - {low.key}", steps=high.steps, values=values)


def without_spread(case: Case) -> Series:
    """Share of the groups whose responses all got the same reward, as far as it can be told from the log."""
    if len(found := case.log["zero_std"]):
        return found
    mixed = case.log["mixed_groups"]
    if len(mixed):
        return Series(key=f"1 - {mixed.key}", steps=mixed.steps, values=tuple(1 - value for value in mixed.values))
    high, low = case.log["advantage_max"], case.log["advantage_min"]
    if len(high) and high.steps == low.steps:  # extremes of the advantage can only tell all groups from none
        equal = _steps_of_equal_rewards(case)
        none = tuple(
            float(step in equal or max(abs(a), abs(b)) <= ZERO)
            for step, a, b in zip(high.steps, high.values, low.values, strict=True)
        )
        return Series(key=f"all of {high.key}, {low.key} = 0", steps=high.steps, values=none)
    deviation, reward = case.log["reward_std"], case.log["reward"].at
    if len(deviation):  # the mean over the groups of a step is 0 where all are without
        none = tuple(
            float(value <= ZERO * max(1.0, abs(reward.get(step, 0.0)))) for step, value in deviation.at.items()
        )
        return Series(key=f"{deviation.key} = 0", steps=deviation.steps, values=none)
    return Series()


def without_advantage(case: Case) -> bool:
    """Whether every advantage is 0, by the recorded tokens or else by the log: the rewards teach nothing."""
    if case.updates:
        return all(one.with_advantage == 0 and one.bad is None for one in case.updates)
    known = case.log["advantage_zero"]
    known = known if len(known) else without_spread(case)
    return len(known) > 0 and min(known.values) >= 1 - ZERO


def _steps_of_equal_rewards(case: Case) -> set[int]:
    """Steps with equal rewards. There verl divides the rounding error of the mean by 1e-6, and advantages are not 0."""
    high, low = case.log["reward_max"], case.log["reward_min"]
    return {step for step, value in high.at.items() if low.at.get(step) == value}


def silent_steps(share: Series) -> int:
    """Number of last points in a row at which no group has spread, if that is more than chance; otherwise 0.

    After other steps, a share p of groups without spread gives a run of k by chance with p^k, at every step anew.
    """
    run = 0
    while run < len(share) and share.values[-1 - run] >= 1 - ZERO:
        run += 1
    before = share.values[: len(share) - run]
    if run < ENOUGH:
        return 0
    usual = (sum(before) + 1) / (len(before) + 2)
    return run if not before or usual**run < CHANCE else 0


ENOUGH = 5
"""Points in a row without any spread; fewer may be a coincidence."""

CHANCE = 1e-5
"""Probability of such a run by chance, small because every step of a long log may begin one."""
