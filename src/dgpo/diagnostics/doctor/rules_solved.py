"""Rule about a run that has learned its task: what looks like a fault then follows from success."""

from __future__ import annotations

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import without_spread
from dgpo.diagnostics.doctor.noise import FEWEST, above, recent

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
    if SOLVED <= top <= 1:
        return 1.0, f"taken to be 1: {reward.key} is at most {top:.3g}"
    functions = [one for one in case.log.reward_functions.values() if len(one) and max(one.values) > 0]
    if len(functions) < 2 or any(max(one.values) > 1 or min(one.values) < 0 for one in functions):
        return None
    sums = sum(one.values[-1] for one in functions)
    if abs(sums - reward.values[-1]) > 0.01 * abs(sums):
        return None  # weighted in another way
    return float(len(functions)), f"taken to be {len(functions)}: so many reward functions of at most 1 add up to it"


def _solved(case: Case) -> Found | None:
    reward = case.log["reward"]
    if len(reward) < LONG_ENOUGH:
        return None
    ceiling = _ceiling(case)
    if ceiling is None or max(reward.values) == min(reward.values):
        return None  # a constant reward may as well be a function that does not look at the response
    top, how = ceiling
    level = recent(reward.values)
    if not above(level, SOLVED * top, LONG_ENOUGH) or level.now.value < SOLVED * top:
        return None
    entropy, dead = case.log["entropy"], without_spread(case)
    return Found(
        title=f"The task is solved: the reward is {level.now.value / top:.0%} of what it can be.",
        evidence=[
            f"{reward.key} {level.now} over the last third of the log (mean with its 98 % interval)",
            f"at the start: {reward.head}",
            f"highest possible reward {how}",
            *(f"{one.head} -> {one.tail}, which follows" for one in (dead, entropy) if len(one) >= 2 * FEWEST),
        ],
        step=reward.since(lambda value: value >= SOLVED * top),
    )


RULES = (
    Rule(
        name="solved",
        severity="note",
        fires=f"a mean reward over the last third of the log (at least {LONG_ENOUGH} points) of {SOLVED:.0%} of the "
        "highest possible one (98 % interval). This is the largest logged maximum of the reward, or else 1 for "
        "rewards of at most 1, or the number of reward functions of at most 1",
        cause="The policy answers nearly every prompt right. As a consequence, the rewards of most groups are equal "
        "and give no gradient, and the entropy is low, because the policy is sure of what is right. Neither is "
        "a fault.",
        remedy="Stop here and evaluate on held-out problems, or continue with harder data: drop the prompts that are "
        "always solved, or have their groups replaced (dynamic_sampling=True; filter_groups in verl).",
        check=_solved,
        explains=("zero_variance", "entropy_falling", "reward_flat", "reward_function_saturated", "sampling_settings",
                  "grad_clipped"),
    ),
)  # fmt: skip
