"""Rule about the policy that the ratio is taken against: one that equals the policy leaves no ratio to act on."""

from __future__ import annotations

from dgpo.counts import counted
from dgpo.diagnostics.doctor.case import Case
from dgpo.diagnostics.doctor.finding import Found, Rule
from dgpo.diagnostics.doctor.noise import FEWEST
from dgpo.diagnostics.doctor.rules_sampler import MISMATCH, mismatch_series
from dgpo.diagnostics.doctor.rules_weights import SAME_POLICY, was_off_policy

MANY = 2 * FEWEST
"""Minimum number of updates with a ratio of 1."""

STALE = 0.5
"""Share of the limits of `sampler_mismatch` from which μ counts as another policy. Kernels and bfloat16 give a
twentieth of the limit of the KL and 0.15 of that of mean |log μ - log π_old|."""


def _anchor(case: Case) -> Found | None:
    if case.anchor == "rollout" or was_off_policy(case):
        return None
    sampler, limit = mismatch_series(case)
    if len(sampler) < MANY or sampler.tail.median < STALE * limit:
        return None
    evidence = _ratio_is_one(case)
    if evidence is None:
        return None
    return Found(
        title="The ratio is 1 at every token, because π_old is the current policy, although the sampler is a different "
        "one.",
        evidence=[evidence, str(sampler.tail)],
        step=sampler.since(lambda value: value >= STALE * limit),
    )


def _ratio_is_one(case: Case) -> str | None:
    """In words, where it holds for every logged or recorded update."""
    for name in ("kl_old", "mean_log_ratio"):
        series = case.log[name]
        if len(series) >= MANY and case.resolution == 0:
            largest = max(map(abs, series.values))
            return (
                f"{series.key} at most {largest:.2g} on {counted(len(series), 'step')}"
                if largest <= SAME_POLICY
                else None
            )
    if len(case.updates) >= MANY and max(one.largest for one in case.updates) == 0:
        return f"max |log ratio| = 0 over {counted(len(case.updates), 'recorded update')}"
    return None


RULES = (
    Rule(
        name="anchor",
        severity="warning",
        fires=f"KL(π_old ‖ π) at most {SAME_POLICY:g} on every logged step (at least {MANY}; or a log ratio of 0 at "
        "every recorded token), while the mismatch of the sampler, as the median of the last third of the log, "
        f"is at least {STALE:g} times the limit of `sampler_mismatch` ({STALE * MISMATCH:g} nats per token); "
        "never if the run says anchor = 'rollout'",
        cause="log π_old is computed from the weights that are about to be updated, as in fully asynchronous "
        "training. π/π_old is therefore 1, and no bound of the objective ever acts. The responses are stale by "
        "π/μ, which only a correction sees.",
        remedy="Take the ratio against the sampler: anchor='rollout' (bypass_mode of verl's rollout_correction, "
        "--use-rollout-logprobs in slime). Or keep the anchor, knowing that the objective has no effect, and "
        "bound π_old/μ with a correction.",
        check=_anchor,
        explains=("on_policy",),
    ),
)
