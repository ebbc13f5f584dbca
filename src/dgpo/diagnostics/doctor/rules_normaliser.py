"""Rule about the normaliser: what a step was divided by, against what the recorded tokens say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.measures import Measures

FEWEST = 3
"""Updates that must agree."""

TOLERANCE = 0.05
"""Relative. Both values repeat float32 arithmetic on the same numbers and agree to 1e-5; a wrong normaliser is off by
an integer factor, 2 at least, or by the spread of lengths between micro-batches."""

SMALLEST_LOSS = 1e-4
"""Losses below this are what cancellation has left, and their ratio is noise."""

ONLY_POLICY_TERM = {
    "beta": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "positive_nll_coef": 0.0,
    "correction": None,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
}
"""Settings under which the loss is the policy term alone, which the recorded tokens give."""


def _check(case: Case) -> Found | None:
    return _totals(case) or _loss(case)


def _totals(case: Case) -> Found | None:
    """The totals that the loss was given, against the tokens counted."""
    kept = case.log["advantage_zero"]
    zero = dict(zip(kept.steps, kept.values, strict=True))
    ranks = case.info.get("world_size") or 1
    found = []
    for update, files in _by_update(case.updates).items():
        given, share = files[0].totals, zero.get(update)
        with_advantage = sum(one.with_advantage for one in files)
        if (
            given is None
            or share is None
            or share >= 1
            or not with_advantage
            or len(files) != ranks
            or _steps(case) != 1
        ):
            continue
        # ranks average their gradients, so each is given the totals of all divided by their number
        found.append((update, given, with_advantage / (1 - share) / ranks))
    wrong = [one for one in found if abs(one[1] / one[2] - 1) > TOLERANCE]
    if len(wrong) < FEWEST or len(wrong) < len(found) / 2:
        return None
    factor = statistics.median(counted / given for _, given, counted in wrong)
    update, given, counted = wrong[0]
    return Found(
        title=f"The loss is divided by {given:.4g} tokens where the step has {counted:.4g}: a factor of {factor:.3g}"
        f"{_guess(case, factor)}.",
        evidence=[
            f"update {update}: totals of {given:.6g} tokens; {counted:.6g} counted",
            f"wrong on {len(wrong)} of {len(found)} recorded updates",
        ],
        step=update,
    )


def _loss(case: Case) -> Found | None:
    """The loss that was logged, against the loss computed again."""
    logged = case.log["loss"]
    if _steps(case) != 1 or any(case.setting(name) != value for name, value in ONLY_POLICY_TERM.items()):
        return None
    if case.setting("use_vllm") or "aux_loss" in case.log.keys:
        return None
    values = dict(zip(logged.steps, logged.values, strict=True))
    found = []
    for update, files in _by_update(case.updates).items():
        losses = [one.loss for one in files if one.loss is not None]
        if update not in values or len(losses) != (case.info.get("world_size") or 1):
            continue
        if abs(again := statistics.fmean(losses)) >= SMALLEST_LOSS:
            found.append((update, values[update], again))
    wrong = [one for one in found if abs(one[1] / one[2] - 1) > TOLERANCE]
    if len(wrong) < FEWEST or len(wrong) < len(found) / 2:
        return None
    factor = statistics.median(value / again for _, value, again in wrong)
    update, value, again = wrong[0]
    return Found(
        title=f"The logged loss is {factor:.3g} times what the recorded tokens give{_guess(case, factor)}.",
        evidence=[
            f"update {update}: {logged.key} {value:.5g}, computed again {again:.5g}",
            f"wrong on {len(wrong)} of {len(found)} recorded updates",
        ],
        step=update,
    )


def _by_update(updates: Iterable[Measures]) -> dict[int, list[Measures]]:
    found: dict[int, list[Measures]] = {}
    for one in updates:
        if one.bad is None:
            found.setdefault(one.update, []).append(one)
    return found


def _steps(case: Case) -> float | None:
    """Steps that one log line averages over."""
    value: float | None = case.setting("logging_steps")
    return value


def _guess(case: Case, factor: float) -> str:
    accumulation, ranks = case.setting("gradient_accumulation_steps"), case.info.get("world_size") or 1
    for number, words in ((accumulation, "the number of micro-batches"), (ranks, "the number of ranks")):
        if number and number > 1 and min(abs(factor / number - 1), abs(factor * number - 1)) <= TOLERANCE:
            return f", {words} ({number}){'' if factor > 1 else ' inverted'}"
    return ""


RULES = (
    Rule(
        name="normaliser",
        severity="error",
        fires=f"on most recorded updates (at least {FEWEST}) the totals given to the loss differ from the tokens "
        f"counted, or the logged loss from the one computed again, by more than {TOLERANCE:.0%}; needs recorded "
        "tokens, logging_steps = 1 and, for the loss, no KL, entropy or NLL term",
        cause="Each micro-batch (or rank) is divided by its own tokens, or by the number of micro-batches once more: "
        "the gradient then depends on how the step was split.",
        remedy="Divide by the totals of the whole optimiser step, over all micro-batches and ranks, once: pass "
        "totals=StepTotals(...) to policy_loss, and do not scale the loss again.",
        check=_check,
        explains=("grad_clipped",),
    ),
)
