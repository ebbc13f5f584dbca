"""Rules about the learning rate: none at all, and a schedule that is over."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule

ENOUGH = 5
"""Logged steps at a learning rate of 0; a warm-up has one."""

OVER = 1e-3
"""Share of the largest learning rate, below which the schedule counts as over."""

PART = 0.05
"""Minimum share of the log after the end of the schedule."""

REPEATED = 2.0
"""Logged steps per learning rate from which they count as rounded: a schedule that is printed whole differs at each."""


def _none(case: Case) -> Found | None:
    rate = case.log["learning_rate"]
    # a console that prints three decimals shows 0.000 for 1e-6
    if len(rate) < ENOUGH or max(rate.values) > 0 or case.resolution > 0:
        return None
    return Found(
        title="The learning rate is 0: nothing is trained.",
        evidence=[f"{rate.key} = 0 on all {counted(len(rate), 'logged step')}"],
        step=rate.steps[0],
    )


def _over(case: Case) -> Found | None:
    rate = case.log["learning_rate"]
    if len(rate) < ENOUGH or max(rate.values) <= 0 or case.resolution > 0:
        return None
    top = max(rate.values)
    past = 0
    while past < len(rate) and rate.values[-1 - past] <= OVER * top:
        past += 1
    if past < max(ENOUGH, PART * len(rate)):
        return None
    if _rounded(rate.values[:-past], OVER * top):
        return None
    step = rate.steps[-past]
    return Found(
        title=f"The learning-rate schedule ended at step {step}: later steps change nothing.",
        evidence=[
            f"{rate.key} at most {OVER * top:.2g} on the last {past} of {len(rate)} logged steps, {top:.2g} before"
        ],
        step=step,
    )


def _rounded(values: Sequence[float], limit: float) -> bool:
    """Whether a learning rate below the limit may have been printed as 0: they are multiples of what comes before it.

    `Learning Rate: 0.00000001`, and then 0.00000000.
    """
    unit = values[-1]
    levels = {value for value in values if value > 0}
    return (
        unit > limit
        and len(values) >= REPEATED * len(levels) > REPEATED
        and all(abs(value / unit - round(value / unit)) < 1e-6 for value in levels)
    )


RULES = (
    Rule(
        name="no_learning_rate",
        severity="error",
        fires=f"a learning rate of 0 on every logged step (at least {ENOUGH})",
        cause="The scheduler was given no steps, the warm-up is longer than the run, or the learning rate is 0.",
        remedy="Check learning_rate, warmup_steps and max_steps. Print the optimiser's learning rate after a few "
        "steps.",
        check=_none,
        explains=("on_policy",),
        leads_to=("reward_flat",),
        confidence="certain",
    ),
    Rule(
        name="schedule_over",
        severity="warning",
        fires=f"a learning rate of at most {OVER:g} of the largest one on the last {ENOUGH} logged steps and "
        f"{PART:.0%} of the log",
        cause="The schedule was made for fewer steps than the run has, because it was resumed with more steps or "
        "because the number of steps was estimated from another batch size.",
        remedy="Stop here, or start again with a schedule for all steps (max_steps) or a constant one.",
        check=_over,
        leads_to=("reward_flat",),
        confidence="certain",
    ),
)
