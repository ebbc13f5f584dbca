"""Intervals of means over problems, for one model and for the difference of two, and what they can detect.

Both add two pseudo-problems, so that equal results on all problems do not give an interval of width 0; then
Student's t. Chosen by simulation:
`studies/intervals/README.md` has the candidates, the grid and every cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dgpo.fields import check_value
from dgpo.runs.results import Estimate

POWER = 0.8
"""Probability of detecting a difference as large as `Estimate.detectable`."""

Values = NDArray[np.float64]


def interval(per_problem: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over problems of values in [0, 1], with an interval for other problems of the same kind::

        y = (y_1, ..., y_P, 0, 1),    mean(y) ± t(P+1) · sd(y) / sqrt(P+2),    within [0, 1]

    with t(P+1) the quantile of Student's distribution. It is Miller's clustered formula (arXiv 2411.00640, section
    2.2: the standard error of the per-problem means) with two pseudo-problems, one that is never solved and one that
    always is, as Agresti and Coull (1998) add successes and failures to a proportion. `value` is the plain mean, which
    the interval always contains.

    Args:
        per_problem: [P] one value in [0, 1] per problem, e.g. its mean over samples or its pass@k.
        confidence: in (0, 1).

    Raises:
        ValueError: not one-dimensional, empty, values outside [0, 1], a confidence outside (0, 1).
    """
    values = _checked(per_problem, confidence, 0.0, "per_problem")
    low, high, error, quantiles = bounded(values, confidence)
    # two such models, each on problems of its own: their variances add up
    return _estimate(values, low, high, math.sqrt(2) * error * quantiles)


def interval_of_differences(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over problems of the differences of two models, values in [-1, 1], with an interval::

        y = (d_1, ..., d_P, -h, h),    mean(y) ± t(P+1) · sd(y) / sqrt(P+2),    within [-1, 1]

    with h the root mean square of the differences that are not 0, and 1 if all are 0. h = 1 throughout would cover rare
    large differences that no problem shows, but would hide half of what a test finds (`studies/intervals`).

    Args:
        differences: [P] one value in [-1, 1] per problem.
        confidence: in (0, 1).

    Raises:
        ValueError: not one-dimensional, empty, values outside [-1, 1], a confidence outside (0, 1).
    """
    values = _checked(differences, confidence, -1.0, "differences")
    low, high, error, quantiles = bounded_difference(values, confidence)
    return _estimate(values, low, high, error * quantiles)


def detectable_of_samples(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> float:
    """The smallest difference to a model that solves each problem with the same chance, which samples alone hide.

        (t + t_power) · sqrt(2 sum_i q_i (1 - q_i) / n_i) / P,    q_i = (c_i + 1/2) / (n_i + 1)

    Args:
        counts: [P] pairs (samples n_i, correct ones c_i).
        confidence: in (0, 1).
    """
    from scipy.special import stdtrit

    n, c = np.array(counts, dtype=np.float64).T
    q = (c + 0.5) / (n + 1)
    quantiles = float(stdtrit(n.size + 1, (1 + confidence) / 2)) + float(stdtrit(n.size + 1, POWER))
    return quantiles * math.sqrt(2 * float((q * (1 - q) / n).sum())) / n.size


def bounded(values: Values, confidence: float = 0.95) -> tuple[Values, Values, Values, float]:
    """`interval` of many samples [..., P] at once: lower ends, upper ends, standard errors, and the sum of the
    quantiles for the level and for `POWER`."""
    return _with_two(values, np.zeros(()), np.ones(()), 0.0, confidence)


def bounded_difference(values: Values, confidence: float = 0.95) -> tuple[Values, Values, Values, float]:
    """`interval_of_differences` of many samples [..., P] at once; see `bounded`."""
    seen = (values != 0).sum(-1)
    # np.where computes both branches: without a difference, the left one must not divide by 0
    h = np.where(seen > 0, np.sqrt((values**2).sum(-1) / np.maximum(seen, 1)), 1.0)
    return _with_two(values, -h, h, -1.0, confidence)


def _with_two(
    values: Values, first: Values, second: Values, least: float, confidence: float
) -> tuple[Values, Values, Values, float]:
    from scipy.special import stdtrit

    n = values.shape[-1] + 2
    mean = (values.sum(-1) + first + second) / n
    squares = ((values - mean[..., None]) ** 2).sum(-1) + (first - mean) ** 2 + (second - mean) ** 2
    error = np.sqrt(squares / (n - 1) / n)
    level, power = float(stdtrit(n - 1, (1 + confidence) / 2)), float(stdtrit(n - 1, POWER))
    # at a low confidence the pseudo-problems can move the middle past the plain mean
    plain = values.mean(-1)
    low = np.minimum(np.maximum(mean - level * error, least), plain)
    high = np.maximum(np.minimum(mean + level * error, 1.0), plain)
    return low, high, error, level + power


def _estimate(values: Values, low: Values, high: Values, detectable: Values) -> Estimate:
    return Estimate(float(values.mean()), float(low), float(high), standard_error(values), float(detectable))


def standard_error(values: Values) -> float:
    """Standard deviation (P - 1) of the values / sqrt(P); 0 for one value."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def _checked(values: ArrayLike, confidence: float, least: float, name: str) -> Values:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"{name} has shape {found.shape}; expected [P], one value for each of P >= 1 problems")
    # rounding of a mean over samples may leave the range by a little
    wrong = ~((found >= least - 1e-9) & (found <= 1 + 1e-9))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(f"{name}[{place}] = {found[place]}; expected values in [{least:g}, 1]")
    check_value("confidence", confidence, "(0, 1)")
    return found
