"""Rules about rewards and responses."""

from __future__ import annotations

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import FEWEST, Found, Rule
from dgpo.runs.log import Series

MOST_GROUPS = 0.5
"""Share of groups without spread; above it, more than half of the completions give no gradient."""

TREND = 0.2
"""Rise of that share since the start that counts as a trend; in a healthy run it varies by about 0.1."""

TRUNCATED, NEARLY_ALL = 0.2, 0.9
"""Share of responses truncated at the limit. From 20 % the reward measures length as much as answers; from 90 % hardly
any response can be correct."""

TIMEOUTS, MANY_TIMEOUTS = 0.01, 0.2
"""Share of grading timeouts. Math answers are graded in milliseconds, so that even 1 % is not chance."""

ZERO = 1e-6
"""Advantages below this are rounding errors; so are spreads below this times the reward, for rewards above 1 (float32
has seven digits)."""


def _spread(case: Case) -> Series:
    """The standard deviation of the rewards, or their range if only that is logged."""
    if len(found := case.log["reward_std"]):
        return found
    high, low = case.log["reward_max"], case.log["reward_min"]
    if high.steps != low.steps:
        return Series()
    values = tuple(a - b for a, b in zip(high.values, low.values, strict=True))
    return Series(key=f"{high.key} - {low.key}", steps=high.steps, values=values)


def _is_constant(case: Case) -> bool:
    reward, spread = case.log["reward"], _spread(case)
    if len(reward) < FEWEST:
        return False
    rounding = ZERO * max(1.0, *map(abs, reward.values))
    same = max(reward.values) - min(reward.values) <= rounding
    return same and (not len(spread) or max(spread.values) <= rounding)


def _zero_reward(case: Case) -> Found | None:
    reward = case.log["reward"]
    if not _is_constant(case) or abs(reward.values[0]) > ZERO:
        return None
    truncated = case.log["truncated"]
    return Found(
        title=f"No response got a reward: 0 on all {len(reward)} logged steps.",
        evidence=[str(reward), *([str(truncated)] if len(truncated) else [])],
        step=reward.steps[0],
    )


def _constant_reward(case: Case) -> Found | None:
    reward = case.log["reward"]
    if not _is_constant(case) or abs(reward.values[0]) <= ZERO:
        return None
    return Found(
        title=f"Every response gets the same reward, {reward.values[0]:.3g}: there is nothing to learn from.",
        evidence=[str(reward), *([str(_spread(case))] if len(_spread(case)) else [])],
        step=reward.steps[0],
    )


def groups_without_spread(case: Case) -> Series:
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
    return Series()


def _steps_of_equal_rewards(case: Case) -> set[int]:
    """Steps with equal rewards. There verl divides the rounding error of the mean by 1e-6, and advantages are not 0."""
    high, low = case.log["reward_max"], case.log["reward_min"]
    return {step for step, value in high.at.items() if low.at.get(step) == value}


def _zero_variance(case: Case) -> Found | None:
    share = groups_without_spread(case)
    if len(share) < FEWEST:
        return None
    start, now = share.head, share.tail
    if min(now.values) >= 1 - ZERO:
        return Found(
            title="In every group all responses get the same reward: the advantages, and so the gradient, are 0.",
            evidence=[str(now)],
            step=share.since(lambda value: value >= 1 - ZERO),
            severity="error",
        )
    rises = len(share) >= 2 * FEWEST and now.median - start.median >= TREND
    if now.median <= MOST_GROUPS:
        return _rising_share(start, now) if rises else None
    return Found(
        title=f"{now.median:.0%} of the groups have no reward spread{' and the share is rising' if rises else ''}: "
        "their completions give no gradient.",
        evidence=[str(now), f"at the start: {start}"] if rises else [str(now)],
        step=share.since(lambda value: value > MOST_GROUPS),
    )


def _rising_share(start: Series, now: Series) -> Found:
    return Found(
        title=f"The share of groups without reward spread is rising, from {start.median:.0%} to {now.median:.0%}: more "
        "and more completions give no gradient.",
        evidence=[str(now), f"at the start: {start}"],
        step=now.steps[0],
        severity="note",
        remedy="No fault yet: a run that learns solves more and more of its prompts. Before it is more than half, "
        "filter prompts by difficulty, add harder ones, or have such groups replaced (dynamic_sampling=True; "
        "filter_groups in verl).",
    )


def _truncated(case: Case) -> Found | None:
    share = case.log["truncated"]
    if len(share) < FEWEST or share.tail.median < TRUNCATED:
        return None
    limit = case.setting("max_completion_length")
    length = "" if limit is None else f" of {limit} tokens"
    return Found(
        title=f"{share.tail.median:.0%} of the responses are cut off at the limit{length}.",
        evidence=[str(share.tail)],
        step=share.since(lambda value: value >= TRUNCATED),
        severity="error" if share.tail.median >= NEARLY_ALL else None,
    )


def _timeouts(case: Case) -> Found | None:
    share = case.log["timeout"]
    if len(share) < FEWEST or (mean := sum(share.values) / len(share)) < TIMEOUTS:
        return None
    return Found(
        title=f"The grader timed out on {mean:.1%} of the answers and scored them 0.",
        evidence=[f"{share.key} {mean:.3g} on average, {max(share.values):.3g} at most, over {len(share)} points"],
        step=share.since(lambda value: value > 0),
        severity="error" if mean >= MANY_TIMEOUTS else None,
    )


RULES = (
    Rule(
        name="zero_reward",
        severity="error",
        fires=f"reward 0 on every logged step (at least {FEWEST}), without spread",
        cause="The task is out of reach of the model, the reward function does not recognise its answers (format, "
        "truncation), or the function fails and its error is turned into 0.",
        remedy="Grade a few responses by hand with the same function; evaluate the model before training (pass@k must "
        "be above 0); use an easier task, a longer limit, or a reward for the format first.",
        check=_zero_reward,
        explains=("zero_variance",),
    ),
    Rule(
        name="constant_reward",
        severity="error",
        fires=f"the same reward other than 0 on every logged step (at least {FEWEST}), without spread",
        cause="The task is solved by every response, or the reward function does not look at the response.",
        remedy="Call the reward function with a right and a wrong response: it must tell them apart. If all responses "
        "are right, use harder data.",
        check=_constant_reward,
        explains=("zero_variance",),
    ),
    Rule(
        name="zero_variance",
        severity="warning",
        fires=f"more than {MOST_GROUPS:.0%} of the groups without reward spread over the last third of the log; an "
        f"error at 100 %; a note on fewer, where the share has risen by {TREND} since the start",
        cause="Prompts that are always or never solved: every advantage of such a group is 0.",
        remedy="Filter the data by difficulty, raise num_generations, or have such groups replaced "
        "(dynamic_sampling=True; filter_groups in verl).",
        check=_zero_variance,
    ),
    Rule(
        name="truncated",
        severity="warning",
        fires=f"{TRUNCATED:.0%} of the responses cut off over the last third of the log; an error at {NEARLY_ALL:.0%}",
        cause="The limit is shorter than the responses of the model, or the model has not learned to stop: a response "
        "that is cut off holds no answer, so length is punished instead of errors.",
        remedy="Raise max_completion_length (data.max_response_length in verl), leave such responses out of the loss "
        "(mask_truncated_completions), or shape the reward near the limit (soft_overlong_reward).",
        check=_truncated,
    ),
    Rule(
        name="timeouts",
        severity="warning",
        fires=f"{TIMEOUTS:.0%} of the answers not graded in time, on average; an error at {MANY_TIMEOUTS:.0%}",
        cause="Answers that are expensive to compare (towers of powers, huge expressions), or a machine too busy to "
        "grade within the deadline. A right answer that is not graded in time counts as wrong.",
        remedy="Look at the responses whose reason is 'timeout' in the table of completions; raise the grader's "
        "deadline, or give it more workers.",
        check=_timeouts,
    ),
)
