"""Rule about the normaliser of the loss, checked against the recorded tokens."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.measures import Measures

FEWEST = 3
"""Minimum number of wrong updates."""

TOLERANCE = 0.05
"""Relative tolerance. Both values come from float32 arithmetic on the same numbers and agree to 1e-5. A wrong
normaliser is off by an integer factor >= 2, or by the spread of lengths between micro-batches."""

SMALLEST_LOSS = 1e-4
"""Smaller losses are cancellation error, and their ratio is noise."""

ONLY_POLICY_TERM = {
    "beta": 0.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "positive_nll_coef": 0.0,
    "correction": None,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
}
"""Settings with which the loss is the policy term alone, so that it can be recomputed from the recorded tokens."""


def _check(case: Case) -> Found | None:
    # a line that averages over several steps cannot be compared with one of them
    return (_totals(case) or _loss(case)) if case.setting("logging_steps") == 1 else None


def _totals(case: Case) -> Found | None:
    """Compare the totals given to the loss with the counted tokens."""
    zero = case.log["advantage_zero"].at
    ranks = case.info.get("world_size") or 1
    found = []
    for update, files in _by_update(case.updates).items():
        # where the share of zero advantages was not logged, 1 skips the update
        given, share = files[0].totals, zero.get(update, 1.0)
        # files may lack tokens with advantage 0: their logged share gives the number of all
        with_advantage = sum(one.with_advantage for one in files)
        if given is None or share >= 1 or not with_advantage or len(files) != ranks:
            continue
        # ranks average their gradients, so each gets the totals of all ranks divided by their number
        found.append((update, given, with_advantage / (1 - share) / ranks))
    wrong = _wrong(found)
    if not wrong:
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
    """Compare the logged loss with the recomputed one."""
    logged = case.log["loss"]
    if any(case.setting(name) != value for name, value in ONLY_POLICY_TERM.items()):
        return None
    # with vLLM the loss may hold a sampler correction; a mixture of experts adds its router loss
    if case.setting("use_vllm") or "aux_loss" in case.log.keys:
        return None
    values, found = logged.at, []
    for update, files in _by_update(case.updates).items():
        losses = [one.loss for one in files if one.loss is not None]
        if update not in values or len(losses) != (case.info.get("world_size") or 1):
            continue
        # the logged loss is the mean over the ranks
        if abs(again := statistics.fmean(losses)) >= SMALLEST_LOSS:
            found.append((update, values[update], again))
    wrong = _wrong(found)
    if not wrong:
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


def _wrong(found: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """The (update, given, expected) that differ, if most do."""
    wrong = [one for one in found if abs(one[1] / one[2] - 1) > TOLERANCE]
    return wrong if len(wrong) >= max(FEWEST, len(found) / 2) else []


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
        fires=f"on most recorded updates (at least {FEWEST}), the totals given to the loss differ from the tokens "
        f"counted, or the logged loss differs from the one computed again, by more than {TOLERANCE:.0%}. This "
        "needs recorded tokens, logging_steps = 1 and, for the loss, no KL, entropy or NLL term",
        cause="Each micro-batch (or rank) is divided by its own tokens, or once more by the number of micro-batches. "
        "The gradient then depends on how the step was split.",
        remedy="Divide once by the totals of the whole optimiser step, over all micro-batches and ranks: pass "
        "totals=StepTotals(...) to policy_loss, and do not scale the loss again.",
        check=_check,
        explains=("grad_clipped",),
    ),
)
