"""Rules about the length of the responses: cut off at the limit, shrinking, growing."""

from __future__ import annotations

import math

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.noise import FEWEST, above, back, below, changed, geometric, mean, recent, share, start
from dgpo.diagnostics.doctor.progress import FLAT

TRUNCATED, NEARLY_ALL = 0.2, 0.9
"""Share of responses truncated at the limit. From 20 % the reward measures length as much as answers; from 90 % hardly
any response can be correct."""

RESPONSES = 4
"""Responses that stand behind one point of a share, at least."""

NEAR_THE_CAP = 0.95
"""Mean length over the limit from which most responses must be cut off."""

LONG_ENOUGH = 10
"""Minimum number of points for a change of length."""

SHORTER, FEWER = 0.2, 5.0
"""Length now over length at the start, and minimum fall in tokens: short answers lose a large share with one token."""

LONGER, MORE = 1.5, 20.0
"""The same for growth."""


def _truncated(case: Case) -> Found | None:
    cut = case.log["truncated"]
    if len(cut) < FEWEST:
        return None
    level = share(cut.values, RESPONSES)
    if not above(level, TRUNCATED):
        return None
    limit = case.number("max_completion_length") or _cap(case)
    length = "" if limit is None else f" of {limit:g} tokens"
    return Found(
        title=f"{level.now.value:.0%} of the responses are cut off at the limit{length}.",
        evidence=[
            f"{cut.key} {mean(cut.tail.values)} at steps {cut.tail.steps[0]}-{cut.tail.steps[-1]} (mean with its 98 % "
            "interval)",
            *(
                [str(case.log["length_terminated"].tail) + " where they end"]
                if len(case.log["length_terminated"])
                else []
            ),
        ],
        step=cut.steps[changed(cut.values, up=True)],
        severity="error" if above(level, NEARLY_ALL) else None,
    )


def _cap(case: Case) -> float | None:
    """The limit, where the longest response of most steps has the same length."""
    longest = case.log["length_max"]
    longest = longest if len(longest) else case.log["length"]
    if len(longest) < FEWEST:
        return None
    top = max(longest.values)
    at_it = sum(value == top for value in longest.values)
    # whole tokens, several times: the largest of lengths without a limit is not reached twice
    return top if top == int(top) and at_it >= max(FEWEST, 0.05 * len(longest)) else None


def _at_the_cap(case: Case) -> Found | None:
    length = case.log["length"]
    if len(case.log["truncated"]) or len(length) < LONG_ENOUGH:
        return None
    limit = case.number("max_completion_length") or _cap(case)
    if limit is None or limit <= 1:
        return None
    level = recent(length.values, least=5)
    if not above(level, NEAR_THE_CAP * limit, LONG_ENOUGH):
        return None
    full = sum(value >= limit for value in length.values)
    known = case.number("max_completion_length") is not None
    return Found(
        title=f"Responses are {level.now.value:.0f} tokens long on average, at a limit of {limit:g}: most must be cut "
        "off.",
        evidence=[
            f"{length.key} {level.now} over the last third of the log, and {limit:g}, the limit, on {full} of "
            f"{counted(len(length), 'logged step')}",
            "max_completion_length is known"
            if known
            else "the limit is taken to be the length that is reached again and "
            "again; the log has no share of truncated responses",
        ],
        step=length.steps[changed(length.values, up=True)],
        confidence=None if known else "possible",
    )


def _length_fell(case: Case) -> Found | None:
    length = case.log["length"]
    if len(length) < LONG_ENOUGH:
        return None
    values = geometric(length.values, floor=1e-3)
    first, last = start(values), recent(values, share=10, least=3)
    before, now = back(first.now.value), back(last.now.value)
    held = below(last, first.value + math.log(SHORTER), LONG_ENOUGH), below(last.less(first), 0.0, LONG_ENOUGH)
    if not all(held) or before - now < FEWER:
        return None
    return Found(
        title=f"Responses have shrunk from {before:.3g} to {now:.3g} tokens.",
        evidence=[f"{length.head} -> {length.part(-3)}", str(case.progress)],
        step=length.since(lambda value: value <= SHORTER * before),
    )


def _length_grows(case: Case) -> Found | None:
    length, reward = case.log["length"], case.progress
    if len(length) < LONG_ENOUGH or (len(reward.reward) and not reward.hardly):
        return None
    values = geometric(length.values, floor=1e-3)
    first, last = start(values), recent(values, least=5)
    before, now = back(first.now.value), back(last.now.value)
    held = above(last, first.value + math.log(LONGER), LONG_ENOUGH), above(last.less(first), 0.0, LONG_ENOUGH)
    if not all(held) or now - before < MORE:
        return None
    what = "is not in the log" if not len(reward.reward) else "hardly rises" if reward.learns else "does not rise"
    return Found(
        title=f"Responses have grown from {before:.3g} to {now:.3g} tokens, while the reward {what}.",
        evidence=[f"{length.head} -> {length.tail}", str(reward)],
        step=length.steps[changed(length.values, up=True)],
        confidence=None if len(reward.reward) else "possible",
    )


RULES = (
    Rule(
        name="truncated",
        severity="warning",
        fires=f"{TRUNCATED:.0%} of the responses are cut off over the last third of the log (98 % interval); an error "
        f"at {NEARLY_ALL:.0%}",
        cause="The limit is shorter than the responses of the model, or the model has not learned to stop. A "
        "response that is cut off has no answer, so length is punished instead of errors.",
        remedy="Raise max_completion_length (data.max_response_length in verl), leave such responses out of the loss "
        "(mask_truncated_completions), or shape the reward near the limit (soft_overlong_reward).",
        check=_truncated,
        leads_to=("zero_variance", "reward_flat", "zero_reward", "reward_function_constant", "no_gradient"),
    ),
    Rule(
        name="length_at_cap",
        severity="warning",
        fires=f"if no share of truncated responses is logged, a mean length of {NEAR_THE_CAP:.0%} of the limit (98 % "
        "interval). The limit is max_completion_length or else a length that is the largest again and again",
        cause="Most responses end at the limit and not by themselves, so they have no answer, or only part of one.",
        remedy="Log the share of truncated responses, and raise max_completion_length until it is small.",
        check=_at_the_cap,
        leads_to=("zero_variance", "reward_flat", "zero_reward", "reward_function_constant"),
    ),
    Rule(
        name="length_fell",
        severity="warning",
        fires=f"responses are at most {SHORTER:.0%} as long as at the start (98 % interval of the ratio of geometric "
        f"means), and shorter by at least {FEWER:g} tokens",
        cause="Something rewards short responses: a length penalty, a reward that an empty or trivial answer gets "
        "too, or a loss that divides by the length of each response. Or the policy has collapsed to the end of "
        "sequence.",
        remedy="Read a few responses. If they are empty or trivial, remove the reward for them. If answers are as "
        "good as before, nothing is wrong.",
        check=_length_fell,
    ),
    Rule(
        name="length_grows",
        severity="warning",
        fires=f"responses are {LONGER:g} times as long as at the start (98 % interval of the ratio of geometric "
        f"means) and longer by {MORE:g} tokens, in a run whose reward rises by less than {FLAT:g} standard "
        "deviations (98 % interval) or is not logged",
        cause="Long responses are favoured although they are not better: the loss divides by the length of each "
        "response, so that long wrong ones are punished less per token, or the reward is higher for longer "
        "text. Or the policy repeats itself.",
        remedy="Read the longest responses. Aggregate over the tokens of the batch (token-mean; loss_type='dapo' or "
        "'dr_grpo' in TRL), and do not reward length.",
        check=_length_grows,
        leads_to=("truncated", "length_at_cap"),
    ),
)
