"""Rules about trends of the entropy, and about breaks at a resume."""

from __future__ import annotations

import statistics

import torch

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.noise import above, below, changed, recent, start
from dgpo.runs.log import Series

LONG_ENOUGH = 6
"""Minimum number of logged points, so that start and end do not overlap."""

FALLEN, COLLAPSED = 0.25, 0.05
"""Entropy now over entropy at the start. In the demo, which learns well for 800 updates, it falls to 0.6; below a
quarter e^H, the number of tokens that the policy chooses between, is within a few per cent of 1 for usual models."""

RISEN, RISEN_NATS = 1.5, 0.1
"""In a healthy run the entropy falls. A rise by half, and by more than the noise of a small value, is the opposite."""

AROUND = 3
"""Number of points on either side of a resume whose medians are compared."""

SIGMAS = 6.0
"""A jump counts from this many standard deviations of the usual difference between neighbouring medians."""

RELATIVE = 0.1
"""... and this fraction of the value before; a smaller jump changes no conclusion."""


def _falling(case: Case) -> Found | None:
    entropy = case.log["entropy"]
    if len(entropy) < LONG_ENOUGH or entropy.head.median <= 0:
        return None
    first, last = start(entropy.values), recent(entropy.values, share=10, least=4)
    if not below(last, FALLEN * first.value, LONG_ENOUGH) or not below(last.less(first), 0.0, LONG_ENOUGH):
        return None
    left = last.now.value / first.now.value if first.now.value > 0 else 0.0
    collapsed = below(last, COLLAPSED * first.value, LONG_ENOUGH)
    return Found(
        title=f"Entropy has fallen to {max(left, 0):.1%} of its initial value: the policy hardly explores any more.",
        evidence=[f"{entropy.head} -> {entropy.part(-3)}", str(case.progress)],
        step=entropy.since(lambda value: value < FALLEN * entropy.head.median),
        # a policy that becomes sure of what is right loses nothing by it, until it stops improving
        severity="error"
        if collapsed and not case.progress.learns
        else "note"
        if case.progress.learns and not collapsed
        else None,
    )


def _rising(case: Case) -> Found | None:
    entropy = case.log["entropy"]
    if len(entropy) < LONG_ENOUGH:
        return None
    first, last = start(entropy.values), recent(entropy.values, least=4)
    limit = torch.maximum(RISEN * first.value, first.value + RISEN_NATS)
    if not above(last, limit, LONG_ENOUGH) or not above(last.less(first), 0.0, LONG_ENOUGH):
        return None
    return Found(
        title=f"Entropy has risen from {first.now.value:.3g} to {last.now.value:.3g} nats per token: the policy "
        "becomes more and more uniform.",
        evidence=[
            f"{entropy.head} -> {entropy.tail}, above its start from step "
            f"{entropy.steps[changed(entropy.values, up=True)]}",
            str(case.progress),
        ],
        step=entropy.steps[changed(entropy.values, up=True)],
        severity="note" if case.progress.learns else None,
    )


def _resume(case: Case) -> Found | None:
    evidence, first = [], None
    for step in case.log.resumed:
        for name in ("learning_rate", "entropy", "reward"):
            if words := _jump(case.log[name], step):
                evidence.append(words)
                first = step if first is None else first
    if first is None:
        return None
    return Found(
        title=f"The run does not continue where it stopped: a break at step {first}.", evidence=evidence, step=first
    )


def _jump(series: Series, resumed: int) -> str | None:
    at = sum(step <= resumed for step in series.steps)
    if at < AROUND or len(series) - at < AROUND:
        return None
    medians = [statistics.median(series.values[i : i + AROUND]) for i in range(len(series) - AROUND + 1)]
    before, after = medians[at - AROUND], medians[at]
    # differences of medians of neighbouring stretches, those across the resume left out
    usual = [medians[i + AROUND] - medians[i] for i in range(len(medians) - AROUND) if i + 2 * AROUND <= at or i >= at]
    typical = statistics.median(usual) if usual else 0.0
    # 1.4826 · MAD estimates σ for normal noise
    spread = 1.4826 * statistics.median(abs(d - typical) for d in usual) if usual else 0.0
    jump = after - before - typical
    if abs(jump) <= max(SIGMAS * spread, RELATIVE * abs(before)) or len(usual) < AROUND:
        return None
    return f"{series.key} {before:.3g} before step {resumed}, {after:.3g} after it; usual change {typical:.2g}"


RULES = (
    Rule(
        name="resume_jump",
        severity="warning",
        fires=f"learning rate, entropy or reward change at a resume by more than {SIGMAS:g} standard deviations of "
        f"their usual change (medians of {AROUND} points on either side), and by more than {RELATIVE:.0%}",
        cause="Something that is needed to continue was not in the checkpoint or was not used: the state of "
        "optimiser or schedule, merged adapter weights, current weights of the sampler, or the same options as "
        "before.",
        remedy="Compare the options of both starts, and evaluate the checkpoint by itself. If it scores as before the "
        "break, the loading is at fault, otherwise the saving.",
        check=_resume,
    ),
    Rule(
        name="entropy_falling",
        severity="warning",
        fires=f"entropy below {FALLEN:.0%} of its start (98 % interval); an error below {COLLAPSED:.0%}; one level "
        "less severe if the reward rises",
        cause="The updates keep pushing the same few tokens up, because the learning rate is too high, because there "
        "are too many updates per generation, or because an upper clip keeps rare tokens from rising.",
        remedy="First try a lower learning rate or fewer updates per generation. Then give rare tokens more room "
        "(eps_high=0.28, or an objective that keeps a weight beyond the bound), or add a small entropy_coef.",
        check=_falling,
    ),
    Rule(
        name="entropy_rising",
        severity="warning",
        fires=f"entropy above {RISEN:g} times its start, and by more than {RISEN_NATS:g} nats (98 % intervals); a "
        "note if the reward rises",
        cause="An entropy bonus outweighs the reward, negative advantages push tokens down without saying what "
        "should rise, or the rewards are noise.",
        remedy="Lower entropy_coef, check that the reward rises with it, and bound the weight of negative advantages.",
        check=_rising,
    ),
)
