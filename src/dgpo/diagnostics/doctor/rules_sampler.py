"""Rules about a sampler that differs from the trainer's old policy; the kind of difference shows the cause."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import torch

from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.measures import ROUNDING
from dgpo.diagnostics.doctor.noise import FEWEST, above, geometric, recent
from dgpo.runs.log import Series

MISMATCH = 0.02
"""KL(μ ‖ π_old) in nats per token: over a response of 100 tokens the two differ by a factor e². Kernels and bfloat16
alone give about 0.001."""

MISMATCH_DIFFERENCE = 0.1
"""The limit for mean |log μ - log π_old|: 0.015 is reported for a healthy vLLM, 0.2 for one with old weights."""

MISMATCH_PROBABILITY = 0.05
"""The limit for mean |μ - π_old|, which verl logs: 0.1 nats at a probability of one half."""

ENOUGH = 200
"""Minimum number of tokens for a regression."""

EXPLAINED = 0.8
"""R² from which a formula explains the difference: a temperature gives 0.99 with recorded entropies and about
0.9 without, a cut-off, noise or old weights below 0.2."""

SLOPE = 0.03
"""Smallest |1/T - 1| that counts as a temperature."""

NEVER_BELOW = 0.99
"""Minimum share of tokens that are not less likely under μ, if μ is π_old truncated and renormalised. Rounding can
make a few less likely."""

CUT = 0.01
"""Mass of π_old outside μ that counts as a cut. Rounding gives none; at 0.01 the policy itself would leave what μ
can write within 100 tokens in 63 % of its responses."""

JUMP = 4.0
"""Minimum growth factor of the mismatch; the staleness must grow by less than half of it."""


@dataclass(frozen=True)
class Fit:
    """δ = a + b·log π_old + c·H by least squares over all recorded tokens."""

    count: int
    mean: float
    slope: float
    explained: float
    below: float


def fit(case: Case) -> Fit | None:
    """Pooled over the recorded updates; None without the sampler's log-probs, or with too few tokens."""
    parts = [one.sampler for one in case.updates if one.sampler is not None]
    if not parts:
        return None
    moments = torch.stack([part.moments for part in parts]).sum(0)
    count = int(moments[0, 0])
    if count < ENOUGH:
        return None
    design, target = moments[:3, :3], moments[:3, 3]
    known = torch.diagonal(design) > 0  # without recorded entropies there is no third column
    # the normal equations, from pooled sums; lstsq also takes dependent columns, such as a constant entropy
    solution = torch.linalg.lstsq(design[known][:, known], target[known].unsqueeze(1)).solution.squeeze(1)
    mean = float(moments[0, 3]) / count
    total = float(moments[3, 3]) - count * mean**2
    # Σ(δ - fit)² = Σδ² - solutionᵀ·Xᵀδ at the least-squares solution
    residual = float(moments[3, 3] - solution @ target[known])
    return Fit(
        count=count,
        mean=mean,
        slope=float(solution[1]) if len(solution) > 1 else 0.0,
        explained=1 - residual / total if total > 1e-12 * count else 0.0,
        below=sum(part.below for part in parts) / count,
    )


def mismatch_series(case: Case) -> tuple[Series, float]:
    """The mismatch over the run and its limit, from the log or else from the recorded tokens."""
    for name, limit in (
        ("kl_sampler", MISMATCH),
        ("sampler_difference", MISMATCH_DIFFERENCE),
        ("sampler_probability", MISMATCH_PROBABILITY),
    ):
        if len(series := case.log[name]):
            return series, limit
    points = {one.update: one.sampler.kl for one in case.updates if one.sampler is not None}
    return Series(
        key="KL(μ ‖ π_old) of the recorded tokens", steps=tuple(points), values=tuple(points.values())
    ), MISMATCH


def _large(case: Case) -> Series | None:
    series, limit = mismatch_series(case)
    return series if len(series) >= FEWEST and _over(series, limit) else None


def _over(series: Series, limit: float) -> bool:
    """Whether the level of a mismatch is above a limit; of logarithms, since its estimates have a heavy tail."""
    return bool(above(recent(geometric(series.values)), math.log(limit)))


def _truncated_distribution(found: Fit | None) -> bool:
    return found is not None and 1 - found.below >= NEVER_BELOW and found.mean > ROUNDING


def _cut_mass(case: Case) -> Series:
    """Mean of 1 - π_old/μ over the run: logged by us, and k1 - k3 of verl's two estimates."""
    logged = case.log["sampler_cut"]
    if len(logged):
        return logged
    first, third = case.log["kl_sampler_k1"], case.log["kl_sampler"]
    at = third.at
    points = {step: k1 - at[step] for step, k1 in first.at.items() if step in at}
    return Series(key=f"{first.key} - {third.key}", steps=tuple(points), values=tuple(points.values()))


def _cut(case: Case) -> tuple[Series, float] | None:
    """The logged cut mass and its mean over the tail of the log, where it is more than noise of another mismatch.

    Under a μ that covers π_old it is 0 in expectation, whatever μ is, and its noise goes with k3; under a μ that is cut
    off by a mass m, k3 is about m²/2. A mean rather than a median: with a sharper μ, single tokens compensate for many.
    """
    series, third = _cut_mass(case), case.log["kl_sampler"]
    if len(series) < FEWEST or len(third) < FEWEST:
        return None
    mass = fmean(series.tail.values)
    return (series, mass) if mass >= CUT and fmean(third.tail.values) <= mass else None


def _temperature(case: Case) -> Found | None:
    found = fit(case)
    if found is None or _truncated_distribution(found):
        return None
    # slope = 1/T - 1, so -1 and below is not a temperature
    if found.explained < EXPLAINED or abs(found.slope) < SLOPE or found.slope <= -1:
        return None
    series, _ = mismatch_series(case)
    return Found(
        title=f"The sampler's log-probs are those of another temperature: about {1 / (1 + found.slope):.2f} times the "
        "trainer's.",
        evidence=[
            f"log μ - log π_old = {found.slope:+.2f} · log π_old + ..., R² = {found.explained:.2f} over {found.count} "
            "tokens",
            str(series.tail),
        ],
        step=series.steps[0],
    )


def _truncation(case: Case) -> Found | None:
    found, logged = fit(case), _cut(case)
    if found is None or not _truncated_distribution(found):
        if logged is None:
            return None
        cut, mass = logged
        first = case.log["kl_sampler_k1"]
        return Found(
            title="The sampler's log-probs are those of a distribution that was truncated and renormalised: it never "
            f"draws about {mass:.1%} of the policy's probability.",
            evidence=[
                str(cut.tail),
                str(case.log["kl_sampler"].tail),
                *([str(first.tail)] if len(first) else []),
                "k3 is too small by that mass; k1 is the KL",
            ],
            step=cut.steps[0],
        )
    series, _ = mismatch_series(case)
    return Found(
        title="The sampler's log-probs are those of a distribution that was truncated and renormalised: it kept "
        f"about {math.exp(-found.mean):.0%} of the probability.",
        evidence=[
            f"log μ - log π_old is {found.mean:.3g} nats on average and below -{ROUNDING} on only {found.below:.1%} "
            f"of {found.count} tokens",
            str(series.tail),
        ],
        step=series.steps[0],
    )


def _stale(case: Case) -> Found | None:
    series, limit = mismatch_series(case)
    if len(series) < 2 * FEWEST:
        return None
    before = series.head
    jumped = series.since(lambda value: value >= max(limit, JUMP * before.median))
    if jumped is None or before.median >= limit or series.tail.median < max(limit, JUMP * before.median):
        return None
    for name in ("kl_old", "mean_log_ratio"):
        drift = case.log[name]
        if len(drift) >= 2 * FEWEST:
            grown = abs(drift.tail.median) / max(abs(drift.head.median), 1e-9)
            if grown >= JUMP / 2 and abs(drift.tail.median) >= limit:
                return None  # the policy itself moves faster, so that a sampler one step behind differs more
    own = case.log["kl_old"]
    return Found(
        title=f"The sampler has fallen behind: its mismatch has grown from {before.median:.2g} to "
        f"{series.tail.median:.2g} while the drift of the trainer has not changed.",
        evidence=[f"{before} -> {series.tail}", *([f"{own.head} -> {own.tail}"] if len(own) else [])],
        step=jumped,
    )


def _mismatch(case: Case) -> Found | None:
    series = _large(case)
    if series is None:
        mixed = case.log["kl_sampler_and_old"]
        if len(mixed) < FEWEST or not _over(mixed, MISMATCH):
            return None
        return Found(
            title=f"Sampler and trainer differ by {mixed.tail.median:.2g} nats per token; this log does not tell "
            "whether this is mismatch or staleness.",
            evidence=[str(mixed.tail)],
            step=mixed.since(lambda value: value >= MISMATCH),
        )
    found = fit(case)
    unlike = "" if found is None else f"; neither a temperature (R² = {found.explained:.2f}) nor truncation explains it"
    _, limit = mismatch_series(case)
    return Found(
        title=f"The sampler is not the policy that the trainer computes{unlike}.",
        evidence=[str(series.tail)],
        step=series.since(lambda value: value >= limit),
    )


RULES = (
    Rule(
        name="sampler_temperature",
        severity="warning",
        fires=f"over at least {ENOUGH} recorded tokens, R² >= {EXPLAINED} for log μ - log π_old = a + b·log π_old + "
        f"c·H with |b| >= {SLOPE}. The temperature is 1/(1 + b), which is approximate if entropies were not "
        "recorded",
        cause="The sampler uses another temperature than the one by which the trainer divides its logits, or it "
        "returns log-probs from before its temperature is applied.",
        remedy="Set the same temperature on both sides, and let the sampler return processed log-probs "
        "(logprobs_mode='processed_logprobs' in vLLM).",
        check=_temperature,
        explains=("sampler_mismatch", "sampler_stale", "anchor"),
    ),
    Rule(
        name="sampler_truncation",
        severity="warning",
        fires=f"over at least {ENOUGH} recorded tokens, log μ - log π_old is above {ROUNDING} on average, and below "
        f"-{ROUNDING} on less than {1 - NEVER_BELOW:.0%} of them. Or a logged cut mass, mean(1 - π_old/μ) = k1 "
        f"- k3, is {CUT} on average over the last third of the log, and not below k3",
        cause="The sampler uses top_p, top_k or min_p. μ is then π_old without its tail, so every token that was "
        "drawn is more likely under μ, and tokens of the tail are never drawn.",
        remedy="Sample for training with top_p = 1, top_k off and no min_p, because the trainer's log-probs are over "
        "the whole vocabulary.",
        check=_truncation,
        explains=("sampler_mismatch", "sampler_stale", "anchor"),
    ),
    Rule(
        name="sampler_stale",
        severity="warning",
        fires=f"the mismatch grows to {JUMP:g} times its start and above its limit, while KL(π_old ‖ π) does not grow",
        cause="New weights were not, or not completely, sent to the sampler. Possible reasons are a failed "
        "synchronisation, a sampler that is asleep during it, or adapters that are merged with rounding.",
        remedy="Compare a checksum of a few parameters on both sides after a synchronisation. Restart the sampler at "
        "the step named here.",
        check=_stale,
        explains=("sampler_mismatch",),
    ),
    Rule(
        name="sampler_mismatch",
        severity="warning",
        fires=f"KL(μ ‖ π_old) of {MISMATCH} nats per token, a mean |log μ - log π_old| of {MISMATCH_DIFFERENCE} or a "
        f"mean |μ - π_old| of {MISMATCH_PROBABILITY}, over the last third of the log",
        cause="The sampler has other kernels, another precision or chat template, or other weights than the trainer. "
        "This is not staleness, because both belong to the policy before the updates.",
        remedy="Score one batch with both and look where they differ: from the first token on (template, weights), on "
        "rare tokens (precision), or more and more along the response (cache, positions). Until this is "
        "solved, correction='truncate' bounds the effect on the gradient.",
        check=_mismatch,
        leads_to=("drift", "reward_fell", "collapsed", "grad_spike"),
    ),
)
