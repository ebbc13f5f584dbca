"""Rules about loss and gradient: gradients that are 0 or clipped, and a loss of 0."""

from __future__ import annotations

import math
import statistics

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import ZERO, without_spread
from dgpo.diagnostics.doctor.noise import FEWEST, above, back, geometric, recent
from dgpo.runs.log import aligned

MOST = 0.5
"""Share of the steps that counts as most of them."""

FAR_BEYOND, VERY_FAR_BEYOND = 10.0, 100.0
"""Gradient norm over the clip threshold: from a factor of ten, the threshold, not the learning rate, sets the step
length. Adam absorbs a constant factor, so that healthy runs (the demo has 4) are not told; from a hundred, gradients
come near the epsilon of Adam, and every spike is hidden."""

LONG_ENOUGH = 6
"""Minimum number of logged points."""

NO_LOSS = 1e-6
"""Rounding error of the mean of advantages of size 1 in float32."""


def _no_gradient(case: Case) -> Found | None:
    without, norm = without_spread(case), case.log["grad_norm"]
    spread = [(step, value) for step, value, share in aligned(norm, without) if share < 1 - ZERO]
    dead = [step for step, value in spread if value == 0]
    if len(dead) < FEWEST or len(dead) < MOST * len(spread):
        return None
    evidence = [f"{norm.key} = 0 on {len(dead)} of {len(spread)} steps whose generation has groups with reward spread"]
    evidence += [str(case.log[name].tail) for name in ("truncated", "weight_zero") if len(case.log[name])]
    if case.setting("mask_truncated_completions"):
        evidence.append("mask_truncated_completions is on: responses that are cut off have no token in the loss")
    return Found(
        title="The gradient is exactly 0 although rewards differ within groups.", evidence=evidence, step=dead[0]
    )


def _zero_loss(case: Case) -> Found | None:
    loss, norm = case.log["loss"], case.log["grad_norm"]
    if not len(norm):
        return _zero_loss_alone(case)
    pairs = aligned(loss, norm)
    zero = [(step, gradient) for step, value, gradient in pairs if abs(value) <= NO_LOSS and gradient > 0]
    if len(zero) < FEWEST or len(zero) < MOST * len(pairs):
        return None
    return Found(
        title="The loss is 0 but the gradient is not: the value of the loss means nothing here"
        + (", and the reward rises." if case.progress.learns else "."),
        evidence=[
            f"|{loss.key}| <= {NO_LOSS:g} on {len(zero)} of {len(pairs)} logged steps, where {norm.key} is "
            f"{statistics.median(gradient for _, gradient in zero):.3g} (median)",
            str(case.progress),
        ],
        step=zero[0][0],
    )


def _zero_loss_alone(case: Case) -> Found | None:
    """Without a logged gradient norm: whether the run learns is unknown, but rewards differ within groups."""
    loss, without = case.log["loss"], without_spread(case)
    pairs = aligned(loss, without)
    zero = [step for step, value, share in pairs if abs(value) <= NO_LOSS and share < 1 - ZERO]
    if len(zero) < FEWEST or len(zero) < MOST * len(pairs):
        return None
    reward = case.log["reward"]
    return Found(
        title="The loss is 0 although rewards differ within groups, and no gradient norm is logged: the loss does not "
        "tell whether the run learns.",
        evidence=[
            f"|{loss.key}| <= {NO_LOSS:g} on {len(zero)} of {len(pairs)} logged steps whose generation is known",
            *([f"{reward.head} -> {reward.tail}"] if len(reward) >= 2 * FEWEST else []),
        ],
        step=zero[0],
        remedy="Log the gradient norm (TRL: max_grad_norm above 0): above 0 the run learns and nothing is wrong, at 0 "
        "look for a loss in which every token is masked or detached. A reward that does not move suggests that.",
    )


def _grad_clipped(case: Case) -> Found | None:
    limit, norm = case.number("max_grad_norm"), case.log["grad_norm"]
    if not limit or limit <= 0 or len(norm) < LONG_ENOUGH:
        return None
    positive = [value for value in norm.values if value > 0]
    if len(positive) < LONG_ENOUGH:
        return None
    level = recent(geometric(positive))
    far, very_far = (above(level, math.log(factor * limit), LONG_ENOUGH) for factor in (FAR_BEYOND, VERY_FAR_BEYOND))
    # with Adam a constant factor cancels: it explains nothing in a run that learns
    if not very_far and not (far and not case.progress.learns):
        return None
    factor = back(level.now.value) / limit
    return Found(
        title=f"The gradient is clipped by a factor of {factor:.3g} on a typical step.",
        evidence=[f"{norm}, at most {max(norm.values):.3g}", f"max_grad_norm = {limit:g}", str(case.progress)],
        step=norm.since(lambda value: value > FAR_BEYOND * limit),
        severity="note" if case.progress.learns else None,
    )


RULES = (
    Rule(
        name="no_gradient",
        severity="error",
        fires=f"a gradient norm of exactly 0 on at least {MOST:.0%} of the steps that have groups whose rewards differ",
        cause="Every token is masked (because all responses are cut off), every weight is 0 (a hard clip far outside "
        "its bounds), or no parameter of the loss is trained.",
        remedy="Look at the share of truncated responses and of zero weights (evidence), and at which parameters "
        "require a gradient.",
        check=_no_gradient,
        explains=("zero_loss", "on_policy"),
        leads_to=("reward_flat",),
        confidence="certain",
    ),
    Rule(
        name="grad_clipped",
        severity="warning",
        fires=f"a gradient norm of {FAR_BEYOND:g} times max_grad_norm on a typical step (98 % interval) in a run "
        f"whose reward does not rise, or of {VERY_FAR_BEYOND:g} times in any run, as a note if its reward rises",
        cause="The threshold is far below the usual size of the gradient, so every step has the same length, "
        "whatever the batch says. Adam is insensitive to a constant factor, but a large one hides spikes and "
        "changes what the learning rate means.",
        remedy="Set max_grad_norm to about twice the usual norm, so that it stops only spikes. If the norm itself is "
        "surprising, first look for a wrong normaliser or a few heavy tokens.",
        check=_grad_clipped,
    ),
    Rule(
        name="zero_loss",
        severity="note",
        fires=f"|loss| at most {NO_LOSS:g} with a gradient other than 0, on {MOST:.0%} of the logged steps. Without a "
        "logged gradient norm, rewards must differ within groups",
        cause="At ratio 1 the value of the loss is minus the mean advantage, and the advantages of a group add up to "
        "0. The gradient is not 0, because it multiplies each of them by a different ∇log π.",
        remedy="Nothing to do: watch the reward and the gradient norm, not the loss.",
        check=_zero_loss,
        confidence="certain",
    ),
)
