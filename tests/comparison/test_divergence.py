"""Each rule of divergence fires on what it is about, and on nothing else."""

from __future__ import annotations

import math

import pytest

from dgpo.comparison.divergence import ENTROPY, NOT_FINITE, REASONS, RULES, WORSE, diverged
from dgpo.runs.log import Log


def log(entropy: list[float], **last: float) -> Log:
    rows = [{"step": step, "entropy": value, "loss": 0.1, "grad_norm": 1.0} for step, value in enumerate(entropy, 1)]
    rows[-1].update(last)
    return Log.of(rows)


HEALTHY = log([1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6])
COLLAPSED = log([1.0, 1.0, 1.0, 0.5, 0.2, 0.04, 0.04, 0.04])
HALF = {str(number): number % 2 for number in range(100)}
SOLVED = dict.fromkeys(HALF, 1.0)
NOTHING = dict.fromkeys(HALF, 0.0)


@pytest.mark.parametrize(
    ("metrics", "final", "expected"),
    [
        (HEALTHY, SOLVED, None),
        (HEALTHY, HALF, None),
        (HEALTHY, NOTHING, WORSE),
        (COLLAPSED, HALF, ENTROPY),
        # a policy that solves everything needs no entropy
        (COLLAPSED, SOLVED, None),
        # exactly 5 % is not below 5 %
        (log([1.0, 1.0, 1.0, 0.5, 0.2, 0.05, 0.05, 0.05]), HALF, None),
        # too few points to tell the start from the end
        (log([1.0, 0.5, 0.1, 0.01, 0.01]), HALF, None),
        (log([1.0] * 8, grad_norm=math.nan), SOLVED, NOT_FINITE),
        (log([1.0] * 8, loss=math.inf), SOLVED, NOT_FINITE),
        (Log(), HALF, None),
    ],
)
def test_rules(metrics: Log, final: dict[str, float], expected: str | None) -> None:
    assert diverged(metrics, HALF, final) == expected


def test_a_fall_within_the_noise_of_the_problems_is_not_worse() -> None:
    """Of 100 problems: 12 that rise by 0.5 and 16 that fall by it are d = -0.02 with SE 0.027; 12 falls alone are
    d = -0.06 with SE 0.016."""
    start = {str(number): 0.5 for number in range(100)}
    mixed = start | {str(n): 1.0 for n in range(12)} | {str(n): 0.0 for n in range(12, 28)}
    assert diverged(HEALTHY, start, mixed) is None
    assert diverged(HEALTHY, start, {**start, **{str(n): 0.0 for n in range(12)}}) == WORSE
    # a single problem has no standard error: any fall counts
    assert diverged(HEALTHY, {"a": 1.0}, {"a": 0.5}) == WORSE
    assert diverged(HEALTHY, {"a": 1.0}, {"a": 1.0}) is None


def test_every_reason_is_explained() -> None:
    assert set(RULES) == set(REASONS)
