"""Rules about sudden changes: falling reward or length, jumps of the gradient norm."""

from __future__ import annotations

import math
import statistics

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.runs.log import Series, sample

LONG_ENOUGH = 6
"""Minimum number of logged points, so that the best stretch and the last one do not overlap."""

LOST, ALL_LOST = 0.25, 0.75
"""Relative fall from the best level (or from the spread of the rewards if that is larger, since the level may be near
0). The logged reward of the demo is never more than 0.08 of it below its best stretch."""

SIGMAS = 5.0
"""... and standard errors of the difference of two medians; the largest of many medians is two or three too high."""

SHORTER, FEWER = 0.2, 5.0
"""Length now over length at the start, and minimum fall in tokens: short answers lose a large share with one token."""

BEFORE, FEWEST_BEFORE = 10, 5
"""Number of preceding steps whose median is the usual norm (or the median of all of them, if larger), and the minimum
number required."""

SPIKE, EXPLODED = 10.0, 100.0
"""Norm over the usual norm. The maximum in the demo is 2.4; 10 is beyond an unusual batch, and a single spike of 100 is
enough for a warning."""

SPIKES = 3
"""Number of spikes for a warning. One or two, which the gradient clip handles, are a note."""


def _best(series: Series, width: int) -> Series:
    """The stretch of `width` points with the highest median."""
    stretches = [series.part(i, i + width) for i in range(len(series) - width + 1)]
    return max(stretches, key=lambda part: part.median)


def _noise(series: Series) -> float:
    """Standard deviation of a point about its neighbours, estimated robustly against a single break."""
    steps = [b - a for a, b in zip(series.values, series.values[1:], strict=False)]
    # 1.4826 · MAD estimates σ for normal noise; a difference of two points has √2 σ
    return 1.4826 * statistics.median(map(abs, steps)) / math.sqrt(2)


def _reward_fell(case: Case) -> Found | None:
    reward, spread = case.log["reward"], case.log["reward_std"]
    if len(reward) < LONG_ENOUGH:
        return None
    width = max(3, len(reward) // 10)
    best, now = _best(reward, width), reward.part(-width)
    scale = max(abs(best.median), spread.median if len(spread) else 0.0)
    # a median of n normal values has the standard error 1.25 σ/√n; √2 for the difference of two
    fall, error = best.median - now.median, 1.25 * _noise(reward) * math.sqrt(2 / width)
    if fall < LOST * scale or fall <= SIGMAS * error or fall <= 0:
        return None
    middle = (best.median + now.median) / 2
    # the last point above the middle: the fall begins behind it
    last = max(step for step, value in reward.at.items() if value > middle)
    others = (case.log[name] for name in ("entropy", "length", "kl_old", "learning_rate"))
    return Found(
        title=f"The reward has fallen from {best.median:.3g} to {now.median:.3g}.",
        evidence=[
            f"{best} -> {now}",
            *(f"{one.head} -> {one.part(-3)}" for one in others if len(one) >= LONG_ENOUGH),
        ],
        step=next((step for step in reward.steps if step > last), reward.steps[-1]),
        severity="error" if fall >= ALL_LOST * scale else None,
    )


def _length_fell(case: Case) -> Found | None:
    length, reward = case.log["length"], case.log["reward"]
    if len(length) < LONG_ENOUGH:
        return None
    start, now = length.head, length.part(-3)
    if now.median > SHORTER * start.median or start.median - now.median < FEWER:
        return None
    return Found(
        title=f"Responses have shrunk from {start.median:.3g} to {now.median:.3g} tokens.",
        evidence=[f"{start} -> {now}", *([f"{reward.head} -> {reward.tail}"] if len(reward) >= LONG_ENOUGH else [])],
        step=length.since(lambda value: value <= SHORTER * start.median),
    )


def _grad_spike(case: Case) -> Found | None:
    norm = case.log["grad_norm"]
    usual: list[float] = []
    spikes = []
    for step, value in norm.at.items():
        if value <= 0:  # a step without a gradient
            continue
        if len(usual) >= FEWEST_BEFORE:
            # when most groups are solved, the norm is near 0 on many steps and usual on the others
            level = max(statistics.median(usual[-BEFORE:]), statistics.median(usual))
            if value >= SPIKE * level:
                spikes.append((step, value, level))
        usual.append(value)
    if not spikes:
        return None
    step, value, level = max(spikes, key=lambda one: one[1] / one[2])
    factor = value / level
    return Found(
        title=f"The gradient norm jumps to {factor:.3g} times its usual size.",
        evidence=[
            f"{norm.key} {value:.3g} at step {step}, {level:.3g} before it (median)",
            f"{SPIKE:g} times as large as before at steps {sample([one[0] for one in spikes])}",
        ],
        step=spikes[0][0],
        severity=None if len(spikes) >= SPIKES or factor >= EXPLODED else "note",
    )


RULES = (
    Rule(
        name="reward_fell",
        severity="warning",
        fires=f"the median reward of the last tenth of the log (at least 3 points) below that of the best stretch by "
        f"{LOST:.0%} of its level, or of the reward's standard deviation where that is larger, and by more than "
        f"{SIGMAS:g} standard errors; an error from {ALL_LOST:.0%}",
        cause="The policy has broken down (a learning rate too high, weights that nothing bounds, entropy or KL that "
        "run away), or what is rewarded has changed: harder data, a grader that fails from then on, a penalty.",
        remedy="Compare responses from before and after the step named here, and grade both by hand. If the responses "
        "became worse, go back to the checkpoint before it with a lower learning rate; if the grades did, fix the "
        "grader.",
        check=_reward_fell,
    ),
    Rule(
        name="grad_spike",
        severity="warning",
        fires=f"a gradient norm of {SPIKE:g} times the median of the {BEFORE} steps before it and of all before it, on "
        f"{SPIKES} steps or once by {EXPLODED:g} times; a note on fewer",
        cause="A few tokens with a very large weight or advantage, a reward whose scale has changed, or a model close "
        "to overflow.",
        remedy="Look at the rewards and at the heaviest tokens of the step named here. max_grad_norm limits the length "
        "of such a step but not its direction: bound the weights or scale the advantage by its standard "
        "deviation.",
        check=_grad_spike,
    ),
    Rule(
        name="length_fell",
        severity="warning",
        fires=f"responses at most {SHORTER:.0%} as long as at the start, and by at least {FEWER:g} tokens shorter",
        cause="Something rewards short responses: a length penalty, a reward that an empty or trivial answer gets "
        "too, or a loss that divides by the length of each response. Or the policy has collapsed to the end of "
        "sequence.",
        remedy="Read a few responses. If they are empty or trivial, remove the reward for them; if answers are as "
        "good as before, nothing is wrong.",
        check=_length_fell,
    ),
)
