"""Two models on the same problems: the paired difference, its noise and its significance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dgpo.evaluation.estimates import RESAMPLED_VALUES, interval_two_level
from dgpo.evaluation.intervals import interval_of_differences
from dgpo.runs.results import Estimate


@dataclass(frozen=True, kw_only=True)
class Paired:
    """B - A over P problems that both have answered; d_i = c_i/n of B minus c_i/n of A on problem i.

    Attributes:
        problems: P.
        a: accuracy of A.
        b: accuracy of B.
        difference: mean of d_i with its standard error over problems and `interval_of_differences`. For other problems
            of the same kind. Its `detectable` is the smallest true difference that such a comparison finds.
        two_level: the same difference with the interval that also resamples each problem's samples. It is wider
            (see `interval_two_level`), and much wider if the models are alike and sampling noise dominates.
        generation_se: the part of the standard error due to sampling, which more samples would reduce; on exactly these
            problems it is the total error. None if a problem has a single sample.
        better: problems with d_i > 0.
        worse: problems with d_i < 0.
        equal: the others.
        p_value: two-sided, of `sign_flip_p_value`.
    """

    problems: int
    a: float
    b: float
    difference: Estimate
    two_level: Estimate
    generation_se: float | None
    better: int
    worse: int
    equal: int
    p_value: float


def paired(
    a: tuple[ArrayLike, ArrayLike],
    b: tuple[ArrayLike, ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Compare two models on P problems, problem by problem.

    The variation between problems, by far the largest part of the noise, is common to both models and cancels in the
    difference (Miller, arXiv 2411.00640, section 4.2). Overlapping intervals of two models do not mean that they are
    equal; this interval says how far they may differ.

    Args:
        a: (successes [P], samples [P] or one number) of the first model.
        b: the same of the second, problems in the same order.
        confidence: of the intervals, in (0, 1).
        resamples: sign flips of the test, and of the bootstrap of `two_level`.
        seed: the same counts and seed give the same result.

    Raises:
        ValueError: not one-dimensional, empty, different lengths, counts outside 0..n.
    """
    two_level = interval_two_level(*b, baseline=a, confidence=confidence, resamples=resamples, seed=seed)
    rates, variances, samples = [], [], []
    for successes, drawn in (a, b):
        c = np.asarray(successes, dtype=np.float64)
        n = np.broadcast_to(np.asarray(drawn, dtype=np.float64), c.shape)
        rates.append(c / n)
        # p(1-p)/n without bias: with p = c/n it would be too small by (n-1)/n
        variances.append(rates[-1] * (1 - rates[-1]) / np.maximum(n - 1, 1))
        samples.append(n)
    d = rates[1] - rates[0]
    return Paired(
        problems=d.size,
        a=float(rates[0].mean()),
        b=float(rates[1].mean()),
        difference=interval_of_differences(d, confidence),
        two_level=two_level,
        generation_se=math.sqrt(np.sum(variances)) / d.size if np.min(samples) > 1 else None,
        better=int((d > 0).sum()),
        worse=int((d < 0).sum()),
        equal=int((d == 0).sum()),
        p_value=sign_flip_p_value(d, resamples=resamples, seed=seed),
    )


def sign_flip_p_value(differences: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided permutation test of a mean difference of 0: how often do random signs give a mean as far from 0?

    Exact if each problem's difference is as likely as its opposite; so it is for two equal models with the same number
    of samples. All sign patterns are tried if there are no more than `resamples`, else as many at random; then the
    smallest value is 2 / (resamples + 1). Differences of 0 have no sign and are ignored; a single other one is equally
    far from 0 with either sign, and gives 1.

    Args:
        differences: [P].
        resamples: random sign patterns.
        seed: the same differences and seed give the same value.

    Raises:
        ValueError: not one-dimensional, or values that are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"differences has shape {values.shape}; expected [P], finite values")
    values = values[values != 0]
    if values.size < 2:
        return 1.0  # either sign is as far from 0
    if 2**values.size <= resamples:
        # all sums at once: scipy goes through the patterns one by one, a hundred times slower
        sums = np.zeros(1)
        for value in np.abs(values):
            sums = np.concatenate([sums + value, sums - value])
        # sums that are equal but for rounding count as equal
        return float((np.abs(sums) >= abs(values.sum()) - 1e-12 * sums[0]).mean())

    from scipy.stats import permutation_test

    found = permutation_test(
        (values,),
        _mean,
        permutation_type="samples",  # of a single sample: the signs of its values
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, RESAMPLED_VALUES // values.size),
        random_state=np.random.default_rng(seed),  # `rng` in newer scipy, which takes this name too
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being m (Holm, 1979): the chance of any false alarm stays below the level.

        corrected_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),    p_(1) <= ... <= p_(m)

    Returns:
        [m] in the order of `p_values`.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p_values holds {wrong[0]}; expected values in [0, 1]")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(values.mean(axis=axis))
