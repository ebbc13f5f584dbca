"""Rules about the KL to the reference model."""

from __future__ import annotations

import math
import statistics

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.noise import above, back, geometric, recent
from dgpo.runs.log import Series

DIFFERENT = 0.05
"""KL in nats per token at the first logged step from which the reference is not the policy that training starts from.
Rounding gives below 0.005; a usual run has below 0.01 after ten steps."""

NEGLIGIBLE = 0.02
"""Share of the whole sum of learning rates that may have passed before that step."""

ONE_STEP = 1e-6
"""... or that sum itself: one usual step, which changes no KL by as much, however the run goes on."""

FEW_STEPS = 2
"""... and where no learning rate is logged, the number of steps."""

FAR, VERY_FAR = 0.5, 3.0
"""KL in nats per token: at 0.5 a response of 100 tokens is e^50 times as likely as under the reference. Usual runs end
at 0.01 to 0.2."""

GROWN = 5.0
"""Minimum growth since the start."""

LONG_ENOUGH = 6
"""Minimum number of logged points."""


def _differs(case: Case) -> Found | None:
    kl, rate = case.log["kl_reference"], case.log["learning_rate"]
    if len(kl) < 3 or kl.values[0] < DIFFERENT:
        return None
    first = kl.steps[0]
    rates = rate.at
    if case.resolution == 0 and sum(rate.values) > 0:
        before = [value for step, value in rates.items() if step <= first]
        # one logged step may stand for several, and a log may begin where another ends
        walked = max(1, first) * statistics.fmean(before) if before else math.inf
        whole = max(1, rate.steps[-1]) * statistics.fmean(rate.values)
        small = len(rate) >= 10 and walked <= NEGLIGIBLE * whole and before[-1] <= 0.1 * max(rate.values)
        small = small or walked <= ONE_STEP
        why = f"{rate.key} {before[-1]:.2g} there, {max(rate.values):.2g} later" if before else ""
    else:
        small, why = first <= FEW_STEPS, f"after {counted(first, 'step')}"
    # what was learned by then cannot be most of what is learned in the whole run
    if not small or kl.values[0] < 0.2 * statistics.median(kl.values):
        return None
    return Found(
        title=f"The KL to the reference is {kl.values[0]:.2g} nats per token before anything is learned: the "
        "reference is not the policy that training starts from.",
        evidence=[f"{kl.key} {kl.values[0]:.3g} at step {first}; {why}", f"over the run: {kl.head} -> {kl.tail}"],
        step=first,
    )


def _grows(case: Case) -> Found | None:
    kl = case.log["kl_reference"]
    positive = [(step, value) for step, value in kl.at.items() if value > 0]
    if len(positive) < LONG_ENOUGH:
        return None
    # of logarithms: the estimate has a heavy tail, and single tokens make a spike of it
    level = recent(geometric([value for _, value in positive]), least=5)
    held = above(level, math.log(FAR), LONG_ENOUGH)
    if not held:
        return None
    now, begin = back(level.now.value), statistics.median(value for _, value in positive[:3])
    if now < GROWN * begin and positive[0][1] >= DIFFERENT:
        return None
    far = above(level, math.log(VERY_FAR), LONG_ENOUGH)
    learns = case.progress.learns and not case.progress.hardly
    return Found(
        title=f"The policy drifts away from the reference: its KL has grown from {positive[0][1]:.2g} to {now:.2g} "
        "nats per token.",
        evidence=[
            f"{kl.key} {positive[0][1]:.3g} at step {positive[0][0]}, {now:.3g} over the last third (geometric mean), "
            f"{max(kl.values):.3g} at most",
            *_share_of_the_loss(case, kl),
            str(case.progress),
        ],
        step=next(step for step, value in positive if value >= min(FAR, now)),
        severity="error" if far and not learns else "note" if learns and not far and now < 2 * FAR else None,
    )


def _share_of_the_loss(case: Case, kl: Series) -> list[str]:
    """What the loss is of the KL, where it is nothing else."""
    loss = case.log["loss"].at
    ratios = [loss[step] / value for step, value in kl.at.items() if step in loss and value >= 0.1]
    beta = case.number("beta")
    if len(ratios) < LONG_ENOUGH:
        return [] if beta is None else [f"beta = {beta:g}"]
    middle = statistics.median(ratios)
    scatter = statistics.median(abs(ratio - middle) for ratio in ratios)
    if middle <= 0 or scatter > 0.2 * middle:
        return [] if beta is None else [f"beta = {beta:g}"]
    return [f"the loss equals {middle:.2g} · {kl.key}, so its value shows only the KL term"]


RULES = (
    Rule(
        name="reference_differs",
        severity="warning",
        fires=f"a KL to the reference of {DIFFERENT} nats per token at the first logged step, if at most "
        f"{NEGLIGIBLE:.0%} of the sum of all learning rates has passed by then, or {ONE_STEP:g} in all (without "
        f"a learning rate, {FEW_STEPS} steps)",
        cause="The reference is not the checkpoint that training starts from (but the base model, or a model before "
        "the last merge), an adapter is not switched off for it, or it has another precision or dropout.",
        remedy="Score one batch with both before training: the KL must be 0 up to rounding. Load the reference from "
        "the checkpoint that training starts from, or set beta = 0 if the policy should not be pulled to "
        "another model.",
        check=_differs,
        leads_to=("length_grows", "reward_flat", "reference_kl"),
    ),
    Rule(
        name="reference_kl",
        severity="warning",
        fires=f"a KL to the reference of {FAR} nats per token over the last third of the log (geometric mean with its "
        f"98 % interval). It is an error from {VERY_FAR:g} on unless the reward rises, and a note below "
        f"{2 * FAR:g} if it does",
        cause="Nothing holds the policy near the reference, or not enough: the learning rate is too high for this "
        "beta, or beta is near 0. If the reward does not rise too, the policy drifts on noise.",
        remedy="First lower the learning rate, then raise beta. Compare responses of now with those of the start "
        "before you trust a reward that has risen.",
        check=_grows,
        leads_to=("grad_spike", "reward_fell", "collapsed", "entropy_falling", "entropy_rising", "length_fell",
                  "length_grows", "reward_flat", "zero_variance"),
    ),
)  # fmt: skip
