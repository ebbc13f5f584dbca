"""Means with the uncertainty of a run's own noise, which is autocorrelated: neighbouring steps share a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

BLOCKS = 8
"""Number of blocks that a stretch of a log is divided into; with fewer points, every point is a block."""

# 97.5th percentile of Student's t distribution with 1 .. 7 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def mean(values: Sequence[float]) -> Mean:
    """Mean of a stretch of a log, with a 95 % interval from the differences of neighbouring block means.

    The variance of the mean of b blocks m_i is Σ (m_{i+1} - m_i)² / (2 (b - 1) b): von Neumann's estimate, in which a
    trend hardly counts, on blocks, whose means are nearly independent where single steps are not. Student's t with
    b - 1 degrees of freedom.

    Raises:
        ValueError: without values.
    """
    if not values:
        raise ValueError("values is empty; expected at least one number")
    count = min(BLOCKS, len(values))
    if count == 1:
        return Mean(value=values[0], low=-math.inf, high=math.inf)
    ends = [len(values) * i // count for i in range(count + 1)]
    blocks = [fmean(values[first:last]) for first, last in pairwise(ends)]
    variance = sum((b - a) ** 2 for a, b in pairwise(blocks)) / (2 * (count - 1) * count)
    center, half = fmean(values), STUDENT[count - 2] * math.sqrt(variance)
    return Mean(value=center, low=center - half, high=center + half)
