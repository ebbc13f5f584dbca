"""Rules about rewards: whether there are any, whether they differ within groups, and whether they have a baseline."""

from __future__ import annotations

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import ZERO, silent_steps, spread, without_spread
from dgpo.diagnostics.doctor.noise import FEWEST, Level, above, changed, share

SOME_GROUPS, MOST_GROUPS = 0.3, 0.5
"""Share of groups without spread. From 0.3 the batch is a third smaller than it was paid for; at a half, more than half
of the completions give no gradient. In the demo it rises from 0.1 to 0.2."""

LONG_ENOUGH = 10
"""Points from which a share is told; whether every group is without spread, from five."""

TIMEOUTS, MANY_TIMEOUTS = 0.01, 0.2
"""Share of grading timeouts. Math answers are graded in milliseconds, so that even 1 % is not chance."""

RESPONSES = 4
"""Responses that stand behind one point of a share, at least."""

SAME = 1e-3
"""Relative difference up to which the extremes of reward and advantage are the same."""

NARROW = {"temperature": 0.5, "top_k": 10, "top_p": 0.7}
"""Sampling settings from which responses to one prompt are nearly the same."""

PAIRS = 3
"""Responses per prompt up to which most groups have no spread by chance: of two 0/1 rewards, at least half the
groups."""


def _is_constant(case: Case) -> bool:
    reward, deviation = case.log["reward"], spread(case)
    if len(reward) < FEWEST:
        return False
    rounding = ZERO * max(1.0, *map(abs, reward.values))
    same = max(reward.values) - min(reward.values) <= rounding
    # one group per step that is always solved has no spread either, but then the share of such groups varies or is
    # known
    return same and (not len(deviation) or max(deviation.values) <= rounding)


def _zero_reward(case: Case) -> Found | None:
    reward = case.log["reward"]
    if not _is_constant(case) or abs(reward.values[0]) > ZERO:
        return None
    truncated = case.log["truncated"]
    return Found(
        title=f"No response got a reward: 0 on all {counted(len(reward), 'logged step')}.",
        evidence=[str(reward), *([str(truncated)] if len(truncated) else [])],
        step=reward.steps[0],
    )


def _constant_reward(case: Case) -> Found | None:
    reward = case.log["reward"]
    if not _is_constant(case) or abs(reward.values[0]) <= ZERO:
        return None
    return Found(
        title=f"Every response gets the same reward, {reward.values[0]:.3g}, so there is nothing to learn from.",
        evidence=[str(reward), *([str(spread(case))] if len(spread(case)) else [])],
        step=reward.steps[0],
    )


def _no_baseline(case: Case) -> Found | None:
    """The advantage is the reward itself: nothing was subtracted from it."""
    if case.number("num_generations") == 1:
        return Found(
            title="There is only one response per prompt, so there is nothing to compare it with.",
            evidence=["num_generations = 1"],
            step=case.log.rows[0][0] if case.log.rows else None,
        )
    pairs = []
    for bound in ("max", "min"):
        reward, advantage = case.log[f"reward_{bound}"].at, case.log[f"advantage_{bound}"].at
        pairs += [(step, reward[step], advantage[step]) for step in reward if step in advantage and reward[step] != 0]
    if len({step for step, _, _ in pairs}) < ENOUGH_STEPS:
        return None
    same = [step for step, reward, advantage in pairs if abs(advantage - reward) <= SAME * abs(reward)]
    # rewards of 1 and -1, normalised, have advantages of 1 and -1 now and then
    values = {round(reward, 3) for _, reward, _ in pairs}
    if len(same) < 0.95 * len(pairs) or len(values) < ENOUGH_STEPS:
        return None
    return Found(
        title="The advantage is the reward itself: there is one response per prompt and no baseline.",
        evidence=[
            f"{case.log['advantage_max'].key} = {case.log['reward_max'].key}, and so the minima, on "
            f"{len(same) / len(pairs):.0%} of the logged steps",
            f"{case.log['advantage_mean'].tail}, which a baseline makes 0"
            if len(case.log["advantage_mean"])
            else "with a baseline the advantages of a group add up to 0",
        ],
        step=min(step for step, _, _ in pairs),
    )


ENOUGH_STEPS = 8
"""Steps at which reward and advantage must agree."""


def _narrow(case: Case) -> list[str]:
    """Settings of the sampler that explain equal responses, as text."""
    found = []
    for name, limit in NARROW.items():
        value = case.number(name)
        if value is not None and 0 < value <= limit:
            found.append(f"{name} = {value:g}")
    return found


def _sampling(case: Case) -> Found | None:
    narrow, number = _narrow(case), case.number("num_generations")
    few = number is not None and 1 < number <= PAIRS
    if not narrow and not few:
        return None
    dead = without_spread(case)
    if len(dead) < ENOUGH_STEPS or not (silent_steps(dead) or above(share(dead.values), SOME_GROUPS, ENOUGH_STEPS)):
        return None
    settings = [*narrow, *([f"num_generations = {number:g}"] if few else [])]
    return Found(
        title=(
            f"Responses to a prompt are nearly the same, because of {' and '.join(narrow)}."
            if narrow
            else f"In groups of {number:g} responses, rewards are often equal by chance."
        ),
        evidence=[", ".join(settings), f"{dead.key} {sum(dead.values) / len(dead):.0%} on average"],
        step=dead.steps[0],
        cause="If sampling stays so close to the most likely response, a policy gives the same one again and again, "
        "whatever the prompt."
        if narrow
        else "Two 0/1 rewards are equal with probability p² + (1 - p)², which is at least one half for every prompt.",
        remedy="Sample with temperature 1, top_p 1 and without top_k."
        if narrow
        else "Raise num_generations to 8 or more; fewer prompts per step cost less than groups with equal rewards.",
    )


def _zero_variance(case: Case) -> Found | None:
    dead = without_spread(case)
    if run := silent_steps(dead):
        return Found(
            title="In every group all responses get the same reward, so the advantages and the gradient are 0.",
            evidence=[f"{dead.key} = 1 at steps {dead.steps[-run]}-{dead.steps[-1]}, all {run} that were logged"],
            step=dead.steps[-run],
            severity="error",
            confidence="certain",
            cause=_why_equal(case, run),
        )
    if len(dead) < LONG_ENOUGH:
        return None
    level = share(dead.values)
    if not above(level, SOME_GROUPS, LONG_ENOUGH):
        return None
    most, now = bool(above(level, MOST_GROUPS, LONG_ENOUGH)), level.now
    rising = changed(dead.values, up=True)
    # without a share of its own, a step counts only where all of its groups are without spread
    unit = "groups" if case.log["zero_std"] or len(case.log["mixed_groups"]) else "steps"
    return Found(
        title=f"In {now.value:.0%} of the {unit} all rewards are equal{', a share that has risen' if rising else ''}, "
        "so their completions give no gradient.",
        evidence=[
            f"{dead.key} {_interval(level)} over the last third, {sum(dead.values) / len(dead):.0%} over the whole log",
            *_who_is_dead(case, now.value),
        ],
        step=dead.steps[rising],
        # where the reward rises and most groups still teach, prompts are being solved
        severity=None if most or not case.progress.learns else "note",
    )


def _interval(level: Level) -> str:
    return f"{level.now.value:.0%} ({max(0.0, level.now.low):.0%} to {min(1.0, level.now.high):.0%})"


def _who_is_dead(case: Case, dead: float) -> list[str]:
    """Whether the groups without spread are solved or failed, as far as the mean reward tells."""
    reward = case.log["reward"]
    if len(reward) < LONG_ENOUGH or min(reward.values) < 0 or max(reward.values) > 1:
        return []
    mean = sum(reward.tail.values) / len(reward.tail)
    # mean = solved · 1 + failed · 0 + (1 - dead) · something between 0 and 1
    solved, failed = max(0.0, mean - (1 - dead)), max(0.0, dead - mean)
    found = []
    if solved > 0:
        found.append(
            f"at a mean reward of {mean:.2f}, at least {solved:.0%} of all groups are solved by every response"
        )
    if failed > 0:
        found.append(f"at a mean reward of {mean:.2f}, at least {failed:.0%} of all groups are solved by none")
    return found


def _why_equal(case: Case, run: int) -> str | None:
    narrow = _narrow(case)
    if narrow:
        return f"Sampling with {' and '.join(narrow)} gives nearly the same response again and again."
    return None


def _timeouts(case: Case) -> Found | None:
    late = case.log["timeout"]
    if len(late) < FEWEST:
        return None
    level = share(late.values, RESPONSES)
    mean = sum(late.values) / len(late)
    if mean < TIMEOUTS and not above(level, TIMEOUTS):
        return None
    return Found(
        title=f"The grader timed out on {mean:.1%} of the answers and scored them 0.",
        evidence=[
            f"{late.key} {mean:.3g} on average, {max(late.values):.3g} at most, over {counted(len(late), 'point')}"
        ],
        step=late.since(lambda value: value > 0),
        severity="error" if mean >= MANY_TIMEOUTS else None,
    )


RULES = (
    Rule(
        name="zero_reward",
        severity="error",
        fires=f"a reward of 0 for all responses on every logged step (at least {FEWEST})",
        cause="The task is too hard for the model, the reward function does not recognise its answers (format, "
        "truncation), or the function fails and its error is turned into 0.",
        remedy="Grade a few responses by hand with the same function. Evaluate the model before training (pass@k must "
        "be above 0). Use an easier task, a longer limit, or first a reward for the format.",
        check=_zero_reward,
        explains=("zero_variance", "reward_flat", "reward_function_constant"),
        confidence="certain",
    ),
    Rule(
        name="constant_reward",
        severity="error",
        fires=f"the same reward other than 0 for all responses on every logged step (at least {FEWEST})",
        cause="Every response solves the task, or the reward function does not look at the response.",
        remedy="Call the reward function with a right and a wrong response: it must distinguish them. If all "
        "responses are right, use harder data.",
        check=_constant_reward,
        explains=("zero_variance", "reward_flat", "reward_function_constant"),
        confidence="certain",
    ),
    Rule(
        name="no_baseline",
        severity="warning",
        fires="num_generations = 1, or the largest and smallest advantage equal the largest and smallest reward on "
        f"95 % of the logged steps (at least {ENOUGH_STEPS}, with as many different rewards)",
        cause="With one response per prompt, a group has no mean to compare with, and frameworks leave the reward as "
        "it is. The gradient then pushes up everything that was rewarded at all, with the variance of plain "
        "REINFORCE.",
        remedy="Use at least four, better eight responses per prompt (rollout.n in verl, num_generations in TRL), or "
        "an estimator that has a baseline (reinforce_plus_plus_baseline, a critic).",
        check=_no_baseline,
        leads_to=("entropy_rising", "entropy_falling", "reward_flat", "reward_fell", "zero_variance"),
        confidence="certain",
    ),
    Rule(
        name="sampling_settings",
        severity="warning",
        fires="groups with equal rewards as in `zero_variance`, with "
        f"{', '.join(f'{n} <= {v:g}' for n, v in NARROW.items())} or num_generations <= {PAIRS}",
        cause="The rewards of a group are equal because of the settings of the sampler, not because of the prompts.",
        remedy="Sample with temperature 1, top_p 1 and without top_k, with eight or more responses per prompt.",
        check=_sampling,
        leads_to=("zero_variance", "entropy_falling", "reward_flat"),
    ),
    Rule(
        name="zero_variance",
        severity="warning",
        fires=f"equal rewards in more than {SOME_GROUPS:.0%} of the groups over the last third of the log (98 % "
        f"interval, at least {LONG_ENOUGH} points). It is a note below {MOST_GROUPS:.0%} if the reward rises, "
        "and an error if no group of the last steps has rewards that differ, for more steps than by chance (at "
        "least five)",
        cause="Some prompts are always or never solved, so every advantage of their groups is 0.",
        remedy="Filter the data by difficulty, raise num_generations, or have such groups replaced "
        "(dynamic_sampling=True; filter_groups in verl).",
        check=_zero_variance,
        leads_to=("reward_flat",),
    ),
    Rule(
        name="timeouts",
        severity="warning",
        fires=f"{TIMEOUTS:.0%} of the answers not graded in time, on average; an error at {MANY_TIMEOUTS:.0%}",
        cause="Some answers are expensive to compare (towers of powers, huge expressions), or the machine is too "
        "busy to grade within the deadline. A right answer that is not graded in time counts as wrong.",
        remedy="Look at the responses whose reason is 'timeout' in the table of completions. Raise the deadline of "
        "the grader, or give it more workers.",
        check=_timeouts,
        leads_to=("reward_fell", "reward_flat"),
        confidence="certain",
    ),
)
