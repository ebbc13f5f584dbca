"""When a run counts as diverged. All thresholds are here; a diverged run is counted, never dropped."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from dgpo.diagnostics.doctor.rules_solved import SOLVED
from dgpo.diagnostics.doctor.rules_trends import COLLAPSED, LONG_ENOUGH
from dgpo.evaluation.intervals import standard_error
from dgpo.runs.log import MUST_BE_FINITE, Log

FAILED, NOT_FINITE, ENTROPY, WORSE = "failed", "non-finite", "entropy collapsed", "worse than the start"
REASONS = (FAILED, NOT_FINITE, ENTROPY, WORSE)
"""In the order in which they are looked for; the first that holds is given."""

STANDARD_ERRORS = 2.0
"""By so many standard errors of the paired difference over problems the last evaluation is below the first."""

RULES = {
    FAILED: "the process ended with an error",
    NOT_FINITE: f"one of {', '.join(MUST_BE_FINITE)} was logged as NaN or infinite",
    ENTROPY: f"the entropy of the last three logged points is below {COLLAPSED:.0%} of that of the first tenth "
    f"(medians), with a final score below {SOLVED:g}",
    WORSE: f"the final score is below that before training by more than {STANDARD_ERRORS:g} standard errors of the "
    "difference over problems",
}
"""Reason -> the rule in words."""


def diverged(log: Log, start: Mapping[str, float], final: Mapping[str, float]) -> str | None:
    """Why a finished run counts as diverged on a task, one of `REASONS`; None if it does not.

    Args:
        log: the metrics of training.
        start: problem -> its mean score before training.
        final: the same after the last update; the same problems.
    """
    if any(log[name].broken for name in MUST_BE_FINITE):
        return NOT_FINITE
    if statistics.fmean(final.values()) < SOLVED and _collapsed(log):
        return ENTROPY
    changes = np.array([final[problem] - start[problem] for problem in final])
    if changes.mean() < -STANDARD_ERRORS * standard_error(changes):
        return WORSE
    return None


def _collapsed(log: Log) -> bool:
    entropy = log["entropy"]
    if len(entropy) < LONG_ENOUGH or entropy.head.median <= 0:
        return False
    return entropy.part(-3).median < COLLAPSED * entropy.head.median
