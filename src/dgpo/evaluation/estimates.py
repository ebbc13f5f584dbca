"""avg@k and pass@k over P problems with n graded samples each, and what their intervals mean.

An interval here answers: how much would the value move with *other problems of the same kind*? It resamples whole
problems. The noise of the generations needs no second interval: it sits in the per-problem means that are resampled.
Two models on the same problems share the problems' part of it; compare those by paired differences, not by whether
two of these intervals overlap.

Not offered: verl's `best@k`, mean_i[1 - (1 - c_i/n)^k]. It draws k of the n samples *with* replacement and is another,
smaller quantity than pass@k: one correct sample of 32 gives pass@32 = 1, but best@32 = 0.638.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLED_VALUES = 2_000_000
"""Resampled problems held at once by `interval`; bounds its memory at some tens of MB, whatever P is."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with the ends of its interval, as fractions."""

    value: float
    low: float
    high: float


def avg_at_k(correct: ArrayLike) -> float:
    """avg@k = mean_i[c_i / k], the accuracy of one sample, estimated from k samples of every problem.

    Args:
        correct: [P, k] bool or 0/1.

    Raises:
        ValueError: not two-dimensional, empty, or values other than 0 and 1.
    """
    return float(_graded(correct).mean())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of a problem's n samples, drawn without replacement, hold a correct one::

        pass@k = 1 - C(n-c, k) / C(n, k) = 1 - prod_{j = n-c+1 .. n} (1 - k/j),    1 when n - c < k

    Unbiased for 1 - (1-p)^k, where p is the problem's chance of success (Chen et al., arXiv 2107.03374, section 2.1;
    the product avoids the large binomials). pass@1 is c/n.

    Args:
        n: samples of the problem.
        c: how many of them are correct.
        k: samples that one may try.

    Raises:
        ValueError: k < 1, k > n, c < 0 or c > n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} with n = {n} samples; expected 1 <= k <= n (pass@k needs at least k samples)")
    if not 0 <= c <= n:
        raise ValueError(f"c = {c} with n = {n} samples; expected 0 <= c <= n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - c + 1, n + 1))


def interval(per_problem: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean over problems with its percentile bootstrap interval: problems are resampled, with replacement.

    The percentile interval stays within the range of the data, which ± 1.96 standard errors do not for few problems
    (arXiv 2503.01747). One problem, or values that are all equal, give an interval of width 0: nothing in the sample
    says how far other problems would differ. That is not certainty.

    Args:
        per_problem: [P] one value per problem, e.g. its mean over samples or its pass@k.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: the same values and seed give the same interval.

    Raises:
        ValueError: not one-dimensional, empty, values that are not finite, a confidence outside (0, 1).
    """
    values = np.asarray(per_problem, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"per_problem has shape {values.shape}; expected [P], one value for each of P >= 1 problems")
    if not np.isfinite(values).all():
        raise ValueError(f"per_problem[{int(np.argmin(np.isfinite(values)))}] is not finite; expected finite values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}; expected a value in (0, 1), such as 0.95")
    if (values == values[0]).all():
        constant = float(values[0])
        return Estimate(constant, constant, constant)

    from scipy.stats import bootstrap

    low, high = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, RESAMPLED_VALUES // values.size),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),  # `rng` in newer scipy, which takes this name too
    ).confidence_interval
    return Estimate(float(values.mean()), float(low), float(high))


def summarise(
    correct: ArrayLike, greedy: ArrayLike | None = None, ks: Iterable[int] | None = None
) -> dict[str, Estimate]:
    """Every figure of one evaluation, each with its 95 % interval over problems.

    Args:
        correct: [P, n] bool or 0/1, n sampled completions per problem; n = 0 leaves `greedy` alone.
        greedy: [P] bool or 0/1, the greedy completion of every problem; None if there is none.
        ks: the k of pass@k; None takes the powers of two up to n, and n.

    Returns:
        "greedy" (if given), "avg@n" and "pass@k" for every k, in this order; n and k as digits ("avg@8").

    Raises:
        ValueError: shapes that do not fit, values other than 0 and 1, a k outside 1..n, nothing to summarise.
    """
    graded = _graded(correct, allow_empty=True)
    problems, n = graded.shape
    if n == 0 and greedy is None:
        raise ValueError(f"correct has shape {graded.shape} and greedy is None; expected samples, greedy, or both")
    estimates = {}
    if greedy is not None:
        if np.shape(greedy) != (problems,):
            raise ValueError(f"greedy has shape {np.shape(greedy)}; expected ({problems},), the problems of correct")
        estimates["greedy"] = interval(_graded(np.asarray(greedy)[:, None])[:, 0])
    if n == 0:
        return estimates
    estimates[f"avg@{n}"] = interval(graded.mean(axis=1))
    successes = graded.sum(axis=1).astype(int)
    for k in sorted({*(2**power for power in range(n.bit_length())), n} if ks is None else set(ks)):
        estimates[f"pass@{k}"] = interval([pass_at_k(n, int(c), k) for c in successes])
    return estimates


def _graded(correct: ArrayLike, allow_empty: bool = False) -> NDArray[np.float64]:
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] == 0 or (values.shape[1] == 0 and not allow_empty):
        raise ValueError(f"correct has shape {values.shape}; expected [P, n], n samples for each of P >= 1 problems")
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError(f"correct holds {values[~np.isin(values, (0.0, 1.0))][0]}; expected bool, or only 0 and 1")
    return values
