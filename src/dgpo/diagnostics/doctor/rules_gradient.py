"""Rules about loss and gradient: values that are not finite, gradients that are 0, clipped or wrongly scaled."""

from __future__ import annotations

import statistics

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import FEWEST, Found, Rule
from dgpo.diagnostics.doctor.rules_rewards import ZERO, groups_without_spread
from dgpo.runs.log import MUST_BE_FINITE, aligned, sample

MOST = 0.5
"""Share of the steps that counts as most of them."""

FAR_BEYOND = 10.0
"""Gradient norm over the clip threshold: from a factor of ten, the threshold, not the learning rate, sets the step
length. Adam absorbs a smaller constant factor; the demo has 4."""

NO_LOSS = 1e-6
"""Rounding error of the mean of advantages of size 1 in float32."""


def _not_finite(case: Case) -> Found | None:
    evidence, steps = [], []
    for one in case.updates:
        if one.bad is not None:
            evidence.append(
                f"update {one.update}: {one.bad}, the first of {one.bad.count} among {one.count} valid tokens"
            )
            steps.append(one.update)
            break
    for name in MUST_BE_FINITE:
        if (series := case.log[name]).broken:
            evidence.append(f"{series.key} is NaN, infinite or null at steps {sample(series.broken)}")
            steps.append(series.broken[0])
    if not evidence:
        return None
    return Found(title="A value is NaN or infinite.", evidence=evidence, step=min(steps))


def _no_gradient(case: Case) -> Found | None:
    without, norm = groups_without_spread(case), case.log["grad_norm"]
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
        title="The loss is 0 while the gradient is not: the value of the loss means nothing here, and the run learns.",
        evidence=[
            f"|{loss.key}| <= {NO_LOSS:g} on {len(zero)} of {len(pairs)} logged steps, where {norm.key} is "
            f"{statistics.median(gradient for _, gradient in zero):.3g} (median)"
        ],
        step=zero[0][0],
    )


def _zero_loss_alone(case: Case) -> Found | None:
    """Without a logged gradient norm: whether the run learns is unknown, but rewards differ within groups."""
    loss, without = case.log["loss"], groups_without_spread(case)
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
    limit, norm = case.setting("max_grad_norm"), case.log["grad_norm"]
    if not limit or len(norm) < FEWEST or norm.share(lambda value: value > limit) < MOST:
        return None
    share, factor = norm.share(lambda value: value > limit), norm.median / limit
    return Found(
        title=f"The gradient is clipped on {share:.0%} of the steps, by a factor of {factor:.3g} on a typical one.",
        evidence=[f"{norm}, at most {max(norm.values):.3g}", f"max_grad_norm = {limit:g}"],
        step=norm.since(lambda value: value > limit),
        severity="warning" if factor >= FAR_BEYOND else None,
    )


RULES = (
    Rule(
        name="not_finite",
        severity="error",
        fires="a NaN or an infinity at a valid recorded token, or in a logged loss, gradient norm, entropy, KL or "
        "weight (or null, as verl's logger has it)",
        cause="Log-probs of -inf (a token that the sampler could draw and the trainer's mask or top-k forbids), an "
        "overflow in half precision, a micro-batch without a token, or weights that have become NaN before.",
        remedy="Start from the first such value: is it in logprob (the model), in rollout_logprob (the sampler) or in "
        "the advantage (the reward)? Call dgpo.check on the batch before the loss to stop at that point.",
        check=_not_finite,
    ),
    Rule(
        name="no_gradient",
        severity="error",
        fires=f"a gradient norm of exactly 0 on at least {MOST:.0%} of the steps whose groups do have reward spread",
        cause="Every token is masked (all responses cut off and masked for it), every weight is 0 (a hard clip far "
        "outside its bounds), or no parameter of the loss is trained.",
        remedy="Look at the share of truncated responses and of zero weights (evidence), and at which parameters "
        "require a gradient.",
        check=_no_gradient,
    ),
    Rule(
        name="grad_clipped",
        severity="note",
        fires=f"a gradient norm above max_grad_norm on {MOST:.0%} of the steps; a warning from {FAR_BEYOND:g} times "
        "the threshold on a typical step",
        cause="A threshold below the usual size of the gradient: every step has the same length, whatever the batch "
        "says. Adam is insensitive to a constant factor; a large one hides spikes and changes what "
        "the learning rate means.",
        remedy="Set max_grad_norm to about twice the usual norm, so that it stops spikes only; if the norm itself is "
        "the surprise, look for a wrong normaliser or a few heavy tokens first.",
        check=_grad_clipped,
    ),
    Rule(
        name="zero_loss",
        severity="note",
        fires=f"|loss| at most {NO_LOSS:g} with a gradient other than 0, on {MOST:.0%} of the logged steps; without a "
        "logged gradient norm, with reward spread",
        cause="At ratio 1 the value of the loss is minus the mean advantage, and the advantages of a group add up to "
        "0. The gradient multiplies each of them by a different ∇log π, and is not 0.",
        remedy="Nothing to do: watch the reward and the gradient norm, not the loss.",
        check=_zero_loss,
    ),
)
