"""Rules about the log itself: values that are not finite, steps that are missing or repeated, updates that were
skipped."""

from __future__ import annotations

import statistics
from itertools import pairwise

from dgpo.counts import counted, plural
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.groups import without_advantage
from dgpo.diagnostics.doctor.noise import FEWEST, above, share
from dgpo.runs.log import KEYS, sample

SKIPPED, NEARLY_ALL = 0.5, 0.9
"""Share of the steps without an update."""

GAP = 3.0
"""Distance of two logged steps, over the usual distance, that counts as a gap."""

UNSCORED = 0.5
"""Share of the logged rewards that are no number, from which nothing was scored."""

CONSEQUENT = ("epoch", "step_time", "tokens_per_second", "tokens_seen", "length_terminated")
"""Quantities that no gradient depends on; the mean length of no response is NaN."""


def _not_finite(case: Case) -> Found | None:
    evidence, steps = [], []
    for one in case.updates:
        if one.bad is not None:
            evidence.append(
                f"update {one.update}: {one.bad}, the first of {one.bad.count} among "
                f"{counted(one.count, 'valid token')}"
            )
            steps.append(one.update)
            break
    # in the order in which they begin: the first is the nearest to the cause
    broken = [series for name in KEYS if name not in CONSEQUENT and (series := case.log[name]).broken]
    functions = [series for series in case.log.reward_functions.values() if series.broken]
    alone = not evidence and not broken
    for series in sorted([*broken, *functions], key=lambda series: series.broken[0]):
        evidence.append(f"{series.key} is NaN, infinite or null at steps {sample(series.broken)}")
        steps.append(series.broken[0])
    if not evidence:
        return None
    if alone:
        return Found(
            title="The mean of a reward function is NaN at some steps.",
            evidence=evidence,
            step=min(steps),
            severity="note",
            cause="TRL leaves out responses for which a function returns None; the mean over none is NaN. Harmless if "
            "the function is meant for some of the prompts only.",
            remedy="Let the function return a number for every response that it can score.",
        )
    return Found(title="A value is NaN or infinite.", evidence=evidence, step=min(steps))


def _not_scored(case: Case) -> Found | None:
    reward = case.log["reward"]
    none = [*reward.broken, *reward.empty, *reward.unreadable]
    # a single step is enough if no reward is a number and nothing has an advantage
    enough = 1 if not len(reward) and without_advantage(case) else FEWEST
    if len(none) < enough or len(none) < UNSCORED * (len(none) + len(reward)):
        return None
    every = "every" if not len(reward) else f"{len(none)} of {len(none) + len(reward)}"
    return Found(
        title=f"Nothing was scored: the reward is not a number on {every} logged step{'' if not len(reward) else 's'}.",
        evidence=[
            f"{reward.key} is NaN, null or not a number at {plural(len(none), 'step')} {sample(sorted(none))}",
            *(
                [f"every advantage is 0 in {counted(len(case.updates), 'recorded update')}"]
                if case.updates and without_advantage(case)
                else []
            ),
        ],
        step=min(none),
    )


def _skipped(case: Case) -> Found | None:
    skipped = case.log["skipped"]
    if len(skipped) < FEWEST:
        return None
    level = share(skipped.values)
    whole = sum(skipped.values) / len(skipped)
    if not above(level, SKIPPED, 2 * FEWEST) and not (len(skipped) >= 2 * FEWEST and whole >= SKIPPED):
        return None
    return Found(
        title=f"{whole:.0%} of the steps were skipped: hardly anything was trained.",
        evidence=[f"{skipped.key} on {sum(skipped.values):.0f} of {len(skipped)} logged steps"],
        step=skipped.since(lambda value: value > 0),
        severity="error" if whole >= NEARLY_ALL else None,
    )


def _steps(case: Case) -> Found | None:
    steps = [step for step, row in case.log.rows if any(key in row for key in case.log.names.values())]
    evidence = []
    first = []
    if case.log.repeated:
        evidence.append(f"logged more than once: steps {sample(case.log.repeated)}; the last value counts")
        first.append(case.log.repeated[0])
    if len(steps) >= 2 * FEWEST:
        usual = statistics.median(b - a for a, b in pairwise(steps))
        gaps = [(a, b) for a, b in pairwise(steps) if b - a > GAP * usual]
        if gaps:
            shown = ", ".join(f"{a} to {b}" for a, b in gaps[:4])
            evidence.append(
                f"nothing logged from {shown}{', ...' if len(gaps) > 4 else ''}; usually every {counted(usual, 'step')}"
            )
            first.append(gaps[0][0])
    if not evidence:
        return None
    return Found(title="Steps are missing from the log, or are in it twice.", evidence=evidence, step=min(first))


RULES = (
    Rule(
        name="not_finite",
        severity="error",
        fires="a NaN or an infinity at a valid recorded token, or in any logged quantity (or null, which verl's "
        "logger writes); a note if it is only the mean of a reward function",
        cause="There are log-probs of -inf (for a token that the sampler could draw but the trainer's mask or top-k "
        "forbids), an overflow in half precision, a micro-batch without a token, weights of the model that became NaN "
        "earlier, or a weight or penalty of the objective that is not finite (if it is your own).",
        remedy="Start from the first such value: is it in logprob (the model), in rollout_logprob (the sampler) or in "
        "the advantage (the reward)? Call dgpo.check on the batch before the loss to stop at that point. If the tokens "
        "are finite and the loss is not, check an objective of your own with dgpo.testing.check_objective.",
        check=_not_finite,
        leads_to=("reward_fell", "collapsed", "reward_flat"),
        confidence="certain",
    ),
    Rule(
        name="not_scored",
        severity="error",
        fires=f"the reward is NaN, null or not a number on {UNSCORED:.0%} of the logged steps (at least {FEWEST}; "
        "one is enough if no step has a reward and every advantage is 0)",
        cause="The reward function returns None or NaN, or it fails and its error is swallowed.",
        remedy="Call the reward function with a right and a wrong response, and with an empty one: it must return a "
        "number for each.",
        check=_not_scored,
        explains=("not_finite",),
        leads_to=("skipped", "zero_variance", "reward_flat"),
        confidence="certain",
    ),
    Rule(
        name="skipped",
        severity="warning",
        fires=f"no update on {SKIPPED:.0%} of the steps; an error at {NEARLY_ALL:.0%}",
        cause="All responses to the prompts of such a step got the same reward, so there is no advantage and no "
        "gradient.",
        remedy="Use more responses per prompt, more prompts per step, prompts that are sometimes solved, or a reward "
        "that distinguishes responses.",
        check=_skipped,
        leads_to=("zero_variance", "reward_flat", "grad_spike"),
        confidence="certain",
    ),
    Rule(
        name="steps",
        severity="note",
        fires=f"steps that were logged more than once, or {GAP:g} times as far apart as usual",
        cause="The run was started again from an earlier checkpoint, several runs write into one file, or lines were "
        "lost.",
        remedy="Read every run separately, because curves across such a place do not belong to one policy.",
        check=_steps,
        confidence="certain",
    ),
)
