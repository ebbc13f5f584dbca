"""Rules about a reward that falls, collapses or does not move, and about jumps of the gradient norm."""

from __future__ import annotations

import statistics
from bisect import insort

import torch

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Confidence, Found, Rule
from dgpo.diagnostics.doctor.groups import CHANCE, ZERO, silent_steps, spread, without_spread
from dgpo.diagnostics.doctor.noise import Held, below, recent
from dgpo.diagnostics.doctor.progress import FLAT, FLAT_FROM
from dgpo.runs.log import Series, sample

LONG_ENOUGH = 6
"""Minimum number of logged points, so that the best stretch and the last one do not overlap."""

LOST, ALL_LOST = 0.25, 0.75
"""Relative fall from the best level (or from the spread of the rewards if that is larger, since the level may be near
0). The logged reward of the demo is never more than 0.08 of it below its best stretch."""

SELECTED = 1.5
"""Half the interval of the best level is widened by this: the best of many levels is too high by chance."""

AT_ONCE = 5
"""Equal steps after which a collapse is told."""

HIGH_RATE = 1e-4
"""Learning rate from which it is a likely cause of a collapse: usual ones are 1e-6 for all parameters, 1e-5 to 1e-4 for
adapters."""

LOW_RATE = 1e-6
"""Learning rate below which a reward that does not move is no surprise."""

STEPS = 200
"""Steps after which a reward should have moved."""

BEFORE, FEWEST_BEFORE = 10, 5
"""Number of preceding steps whose median is the usual norm (or the median of all of them, if larger), and the minimum
number required."""

SPIKE, EXPLODED = 10.0, 100.0
"""Norm over the usual norm. The maximum in the demo is 2.4; 10 is beyond an unusual batch, and a single spike of 100 is
enough for a warning."""

SPIKES = 3
"""Number of spikes for a warning. One or two, which the gradient clip handles, are a note."""


def _collapsed(case: Case) -> Found | None:
    """From some step on all rewards are the same, and lower than before."""
    reward, deviation, dead = case.log["reward"], spread(case), without_spread(case)
    run = 0
    last = reward.values[-1] if len(reward) else 0.0
    scale = max(1.0, abs(last))
    while run < len(reward) and abs(reward.values[-1 - run] - last) <= ZERO * scale:
        run += 1
    before = reward.part(0, len(reward) - run)
    if run < AT_ONCE or not len(before):
        return None
    first = reward.steps[-run]
    flat = {step: value for step, value in deviation.at.items() if step >= first}
    if any(value > ZERO * scale for value in flat.values()) or (not flat and silent_steps(dead) < AT_ONCE):
        return None
    # at least one step before had something to lose
    had = sum(before.values) / len(before)
    lively = any(value > ZERO for step, value in deviation.at.items() if step < first)
    if had <= last + ZERO * scale or not lively:
        return None
    # one group per step that often has no spread is equal by chance for a while
    if len(before) > run and (run < 2 * AT_ONCE or _often_equal(before, last) ** run > CHANCE):
        return None
    cause, confidence, evidence = _why(case, first)
    return Found(
        title=f"The policy has collapsed: from step {first} on every response gets the same reward, {last:.3g}.",
        evidence=[
            f"{reward.key} {had:.3g} on average before, {last:.3g} at steps {first}-{reward.steps[-1]}, all of them",
            *evidence,
        ],
        step=first,
        cause=cause,
        confidence=confidence,
    )


def _often_equal(before: Series, last: float) -> float:
    return (sum(abs(value - last) <= ZERO for value in before.values) + 1) / (len(before) + 2)


def _why(case: Case, first: int) -> tuple[str | None, Confidence | None, list[str]]:
    """The cause of a collapse at a step, how sure, and the evidence for it."""
    rate = case.log["learning_rate"].at
    near = [value for step, value in rate.items() if step <= first]
    highest = max(near) if near else case.number("learning_rate")
    evidence = []
    for name in ("kl_old", "kl_reference", "grad_norm", "entropy"):
        series = case.log[name]
        if here := [(step, value) for step, value in series.at.items() if step <= first]:
            step, value = max(here[-5:], key=lambda one: one[1])
            evidence.append(f"{series.key} up to {value:.3g} just before (step {step})")
    if highest is not None:
        evidence.insert(0, f"learning rate {highest:.2g}")
    if highest is not None and highest >= HIGH_RATE:
        return (
            f"A learning rate of {highest:.2g}: usual ones are 1e-6 for all parameters of a language model and 1e-5 "
            "to 1e-4 for adapters. A few steps of that size are enough to leave everything the model could do.",
            "likely",
            evidence,
        )
    return None, "possible" if highest is None else None, evidence


def _fall(case: Case) -> tuple[Held, Held, float, float] | None:
    """Whether the reward has fallen by `LOST` and by `ALL_LOST`, its best level and the one now."""
    reward, deviation = case.log["reward"], case.log["reward_std"]
    if len(reward) < LONG_ENOUGH:
        return None
    level = recent(reward.values, share=10, least=4)
    # a level that was certainly reached, before: half as far again from its mean, since it is the best of many
    best = (level.value - SELECTED * level.half).clone()
    best[:3] = -torch.inf
    best = best.cummax(0).values
    usual = statistics.median(deviation.values) if len(deviation) else 0.0
    scale = best.abs().clamp(min=usual)
    scale = torch.where(best.isinf(), torch.ones_like(scale), scale)
    # a reward that is 0 throughout has not fallen by a quarter of 0
    limits = (torch.where(scale > 0, best - lost * scale, -torch.inf) for lost in (LOST, ALL_LOST))
    some, all_ = (below(level, limit, LONG_ENOUGH) for limit in limits)
    return some, all_, float(best[-1]), float(level.value[-1])


def _reward_fell(case: Case) -> Found | None:
    reward = case.log["reward"]
    fall = _fall(case)
    if fall is None or not fall[0]:
        return None
    _, everything, best, now = fall
    # the level that was certainly reached is below the one that was
    reached = max(best, max(_means(reward)))
    middle = (reached + now) / 2
    known = fall[0].index
    # the last point above the middle before the fall was certain: it begins behind that
    last = max((i for i in range(known) if reward.values[i] > middle), default=-1)
    others = (case.log[name] for name in ("entropy", "length", "kl_old", "kl_reference", "learning_rate"))
    return Found(
        title=f"The reward has fallen from {reached:.3g} to {now:.3g}.",
        evidence=[
            f"{reward.key} {reached:.3g} at its best (mean of a tenth of the log) -> "
            f"{recent(reward.values, 10, 4).now}",
            *(f"{one.head} -> {one.part(-3)}" for one in others if len(one) >= LONG_ENOUGH),
        ],
        step=reward.steps[last + 1],
        severity="error" if everything else None,
    )


def _means(series: Series) -> list[float]:
    width = max(4, len(series) // 10)
    sums = [sum(series.values[:width])]
    for new, old in zip(series.values[width:], series.values, strict=False):
        sums.append(sums[-1] + new - old)
    return [total / width for total in sums]


def _flat(case: Case) -> Found | None:
    state = case.progress
    reward = state.reward
    if state.trend != "flat" or reward.steps[-1] - reward.steps[0] < STEPS:
        return None
    rate = case.log["learning_rate"]
    top = max(rate.values, default=0.0) if case.resolution == 0 else 0.0
    top = top or case.number("learning_rate") or 0.0
    low = 0 < top < LOW_RATE
    steps = reward.steps[-1] - reward.steps[0]
    whose = "the reward from step to step" if state.lower else "a response's reward"
    return Found(
        title=f"The reward does not rise: {state.rise.value:+.2g} in {counted(steps, 'step')}.",
        evidence=[
            str(state),
            f"a rise of {FLAT * state.spread:.2g}, a quarter of the standard deviation of {whose}, is outside its "
            "interval",
            *([f"learning rate {top:.2g} at most"] if top else []),
        ],
        step=reward.steps[0],
        cause=f"A learning rate of {top:.2g}: with steps of that size little changes in so many." if low else None,
        remedy="Raise the learning rate: 1e-6 is usual for all parameters, 1e-5 and more for adapters."
        if low
        else None,
    )


def _grad_spike(case: Case) -> Found | None:
    norm = case.log["grad_norm"]
    usual: list[float] = []
    ordered: list[float] = []
    spikes = []
    for step, value in norm.at.items():
        if value <= 0:  # a step without a gradient
            continue
        if len(usual) >= FEWEST_BEFORE:
            # when most groups are solved, the norm is near 0 on many steps and usual on the others
            level = max(statistics.median(usual[-BEFORE:]), ordered[len(ordered) // 2])
            if value >= SPIKE * level:
                spikes.append((step, value, level))
        usual.append(value)
        insort(ordered, value)
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
        name="collapsed",
        severity="error",
        fires=f"the same reward for all responses on all of the last steps (at least {AT_ONCE}, and more than by "
        "chance), lower than before, when rewards differed",
        cause="The policy has broken down and gives one kind of response to every prompt. Possible reasons are a "
        "learning rate that is too high, unbounded weights, or a reward function that fails from that step on.",
        remedy="Go back to a checkpoint before that step and use a tenth of the learning rate. If the responses look "
        "right, the reward function has failed.",
        check=_collapsed,
        explains=("reward_fell", "reward_flat", "constant_reward"),
        leads_to=(
            "zero_variance",
            "entropy_falling",
            "entropy_rising",
            "length_fell",
            "length_grows",
            "truncated",
            "length_at_cap",
            "on_policy",
            "no_gradient",
            "zero_loss",
            "reference_kl",
            "reward_function_constant",
        ),
    ),
    Rule(
        name="reward_fell",
        severity="warning",
        fires="the mean reward of the last tenth of the log (at least 4 points) is below the best one that was "
        f"certainly reached, by {LOST:.0%} of its level or, if that is larger, of the standard deviation of the "
        f"reward (98 % intervals of both). It is an error from {ALL_LOST:.0%} on",
        cause="Either the policy has broken down (a learning rate that is too high, unbounded weights, entropy or KL "
        "that run away), or the task has changed: harder data, a grader that fails from then on, or a penalty.",
        remedy="Compare responses from before and after the step named here, and grade both by hand. If the responses "
        "became worse, go back to the checkpoint before it with a lower learning rate. If only the grades did, "
        "fix the grader.",
        check=_reward_fell,
        explains=("reward_flat",),
        leads_to=("zero_variance", "entropy_rising", "entropy_falling", "length_fell", "length_grows"),
    ),
    Rule(
        name="reward_flat",
        severity="warning",
        fires="a mean reward over the last third of the log that exceeds that of its first tenth by less than "
        f"{FLAT:g} standard deviations of a response's reward (98 % interval; if this is not logged, of the "
        f"mean reward from step to step), over {FLAT_FROM} points and {STEPS} steps",
        cause="There is no signal (groups with equal rewards, responses that are cut off, a reward that is noise), "
        "or the steps are too small.",
        remedy="First look at the causes that are listed with this finding. Then raise the learning rate or the "
        "number of responses per step. Check on a problem that can certainly be learned that the reward rises "
        "at all.",
        check=_flat,
    ),
    Rule(
        name="grad_spike",
        severity="warning",
        fires=f"a gradient norm of {SPIKE:g} times the median of the {BEFORE} steps before it and of all steps before "
        f"it, on {SPIKES} steps, or once by {EXPLODED:g} times; a note on fewer",
        cause="A few tokens have a very large weight or advantage, the scale of a reward has changed, or the model "
        "is close to overflow.",
        remedy="Look at the rewards and at the heaviest tokens of the step named here. max_grad_norm limits the "
        "length of such a step but not its direction, so bound the weights or scale the advantage by its "
        "standard deviation.",
        check=_grad_spike,
        leads_to=("collapsed", "reward_fell", "not_finite"),
        confidence="certain",
    ),
)
