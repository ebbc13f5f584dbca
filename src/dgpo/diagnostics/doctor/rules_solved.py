"""Rule about a run that has learned its task: what looks like a fault then follows from success."""

from __future__ import annotations

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import FEWEST, Found, Rule
from dgpo.diagnostics.doctor.noise import mean
from dgpo.diagnostics.doctor.rules_rewards import groups_without_spread

SOLVED = 0.9
"""Share of the highest possible reward from which a task counts as solved: a policy that solves nearly everything has
little left to explore, so that low entropy and groups without spread are no faults."""

LONG_ENOUGH = 6
"""Minimum number of logged points."""


def _ceiling(case: Case) -> tuple[float, str] | None:
    """The highest possible reward, and how it is known; None if the log does not tell."""
    reward, highest = case.log["reward"], case.log["reward_max"]
    if len(highest):
        top = max(highest.values)
        return (top, f"{highest.key} at most {top:.3g}") if top > 0 else None
    top = max(reward.values)
    # rewards of verifiable tasks are 0 to 1 as a rule; of another scale, the log alone does not tell where it ends
    return (1.0, f"taken to be 1: {reward.key} is at most {top:.3g}") if SOLVED <= top <= 1 else None


def _solved(case: Case) -> Found | None:
    reward = case.log["reward"]
    if len(reward) < LONG_ENOUGH:
        return None
    ceiling = _ceiling(case)
    if ceiling is None or max(reward.values) == min(reward.values):
        return None  # a constant reward may as well be a function that does not look at the response
    top, how = ceiling
    now = mean(reward.tail.values)
    if now.low < SOLVED * top:
        return None
    start, entropy, without = reward.head, case.log["entropy"], groups_without_spread(case)
    return Found(
        title=f"The task is solved: the reward is {now.value / top:.0%} of what it can be.",
        evidence=[
            f"{reward.key} {now} at steps {reward.tail.steps[0]}-{reward.tail.steps[-1]} (mean with its 95 % interval)",
            f"at the start: {start}",
            f"highest possible reward {how}",
            *(f"{one.head} -> {one.tail}, which follows" for one in (without, entropy) if len(one) >= 2 * FEWEST),
        ],
        step=reward.since(lambda value: value >= SOLVED * top),
    )


RULES = (
    Rule(
        name="solved",
        severity="note",
        fires=f"a mean reward over the last third of the log (at least {LONG_ENOUGH} points) of {SOLVED:.0%} of the "
        "highest possible one, with the lower end of its 95 % interval; that is the largest logged maximum of the "
        "reward, or else 1 for rewards of at most 1",
        cause="The policy answers nearly every prompt right. Most groups then have no spread and give no gradient, and "
        "the entropy is low, because the policy is sure of what is right: both follow, and neither is a fault.",
        remedy="Stop here and evaluate on held-out problems, or continue with harder data: drop the prompts that are "
        "always solved, or have their groups replaced (dynamic_sampling=True; filter_groups in verl).",
        check=_solved,
        explains=("zero_variance", "entropy_falling"),
    ),
)
