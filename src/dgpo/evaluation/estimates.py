"""avg@k, pass@k, best@k and maj@k over P problems with n graded samples each, and the meaning of their intervals.

Every estimate is a mean over problems of one value per problem. Its standard error and its interval answer: how much
would it change with *other problems of the same kind*? Sampling noise needs no second term: it is part of the
per-problem values and of their spread. Two models on the same problems share the variation between problems;
`dgpo.evaluation.compare` takes paired differences, in which it cancels.

pass@k and best@k are different quantities: without and with replacement. One correct sample of 32 is pass@32 = 1 and
best@32 = 0.638. See `best_at_k` for which one a paper's P@32 is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dgpo.counts import counted
from dgpo.evaluation.intervals import interval, interval_of_differences
from dgpo.evaluation.votes import Same, majority
from dgpo.fields import check_value
from dgpo.runs.results import Estimate

RESAMPLED_VALUES = 2_000_000
"""Number of resampled values in memory at a time; limits an interval to tens of MB for any P."""


def avg_at_k(correct: ArrayLike) -> float:
    """avg@k = mean_i[c_i / k], the accuracy of one sample, estimated from k samples of every problem.

    Args:
        correct: [P, k] bool or 0/1.

    Raises:
        ValueError: if it is not two-dimensional, is empty, or has values other than 0 and 1.
    """
    return float(_graded(correct).mean())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of a problem's n samples, sampled without replacement, include a correct one::

        pass@k = 1 - C(n-c, k) / C(n, k) = 1 - prod_{j = n-c+1 .. n} (1 - k/j),    1 when n - c < k

    Unbiased for 1 - (1-p)^k, where p is the problem's chance of success (Chen et al., arXiv 2107.03374, section 2.1;
    the product avoids the large binomials). pass@1 is c/n.

    Args:
        n: samples of the problem.
        c: number of correct samples.
        k: number of tries.

    Raises:
        ValueError: if k < 1, k > n, c < 0 or c > n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} with n = {n} samples; expected 1 <= k <= n (pass@k needs at least k samples)")
    _require_counts(n, c)
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - c + 1, n + 1))


def best_at_k(n: int, c: int, k: int) -> float:
    """Probability that k draws *with* replacement from a problem's n samples include a correct one::

        best@k = 1 - (1 - c/n)^k

    This is the expected value of verl's `best@k/mean` (`verl/trainer/ppo/metric_utils.py`), which draws 1,000 such sets
    at random, also at k = n. It is never above pass@k, and far below at k = n for rarely solved problems: of 32
    samples, 1, 2 and 3 correct ones give 0.638, 0.873 and 0.957 where pass@32 gives 1. best@1 is c/n.

    The P@32 of papers that train with verl most likely is this one. With 32 samples, pass@32 of a benchmark is the
    share of problems solved at all: a multiple of 1/30 on AIME. The published values (71.8, 69.1, 60.5, ...) are not.

    Args:
        n: samples of the problem, >= 1.
        c: number of correct samples.
        k: draws, >= 1; may exceed n.

    Raises:
        ValueError: if k < 1, n < 1, c < 0 or c > n.
    """
    if k < 1 or n < 1:
        raise ValueError(f"k = {k} with n = {n} samples; expected k >= 1 and n >= 1")
    _require_counts(n, c)
    return 1.0 - (1.0 - c / n) ** k


def maj_at_k(answers: Sequence[str | None], correct: ArrayLike, same: Same | None = None) -> float:
    """Expected grade of the most frequent answer among a problem's k samples.

    Equal answers vote together; `dgpo.evaluation.votes` defines equality. A sample without answer (None) does not vote;
    without any vote the grade is 0. Ties are broken at random, and the value is the expectation.

    Args:
        answers: [k] the extracted answers.
        correct: [k] bool or 0/1, their grades.
        same: compares wrong answers with each other where the result depends on it; see `votes.same_by`.

    Raises:
        ValueError: if the lengths differ, there are no samples, or grades are not 0 or 1.
    """
    grades = _graded(np.asarray(correct)[None])[0]
    if len(answers) != grades.size:
        raise ValueError(
            f"{counted(len(answers), 'answer')} and {grades.size} grades; expected one grade for each answer"
        )
    return majority(answers, grades.tolist(), same)


def interval_two_level(
    successes: ArrayLike,
    samples: ArrayLike,
    *,
    baseline: tuple[ArrayLike, ArrayLike] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """avg@n, or the difference of two, with an interval that resamples problems and then each problem's samples.

    It is wider than `interval`, because it counts sampling noise twice: in the spread of the per-problem means, and in
    the second draw. Use it for comparison with tables made this way, or as a conservative bound; `summarise` does not
    use it. It is for means only: resampled samples have fewer distinct members, so that a resampled pass@n is best@n,
    and the interval may not even contain the value.

    Args:
        successes: [P] number of correct samples of each problem.
        samples: [P] number of samples of each problem, >= 1, or one number for all.
        baseline: (successes, samples) of another model on the same problems, to subtract. Both models share the
            resampled problems, but not the resampled samples.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: the same counts and seed give the same interval.

    Returns:
        the `interval` of the per-problem means, or the `interval_of_differences`, with these ends.

    Raises:
        ValueError: if it is not one-dimensional or empty, or counts or confidence are out of range.
    """
    check_value("confidence", confidence, "(0, 1)")
    models = [_counts(successes, samples)] + ([] if baseline is None else [_counts(*baseline)])
    size = models[0][0].size
    if models[-1][0].size != size:
        raise ValueError(
            f"baseline has {counted(models[-1][0].size, 'problem')}; expected {size}, the same as successes"
        )

    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, batch := max(1, RESAMPLED_VALUES // size)):
        index = rng.integers(0, size, (min(batch, resamples - start), size))
        # n draws with replacement from n samples of which c are correct
        drawn = [rng.binomial(n[index], (c / n)[index]) / n[index] for c, n in models]
        # [batch, P] -> [batch]; `drawn` has one entry, or two with a baseline
        means.append((drawn[0] - sum(drawn[1:])).mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    first, *rest = [c / n for c, n in models]
    observed = np.asarray(first - sum(rest))
    found = interval_of_differences(observed, confidence) if rest else interval(observed, confidence)
    return replace(found, low=float(low), high=float(high))


def summarise(
    correct: ArrayLike,
    greedy: ArrayLike | None = None,
    ks: Iterable[int] | None = None,
    answers: Sequence[Sequence[str | None]] | None = None,
    same: Same | None = None,
) -> dict[str, Estimate]:
    """Every estimate of one evaluation, each with its standard error and its 95 % interval over problems.

    Args:
        correct: [P, n] bool or 0/1, n sampled completions per problem; n = 0 leaves `greedy` alone.
        greedy: [P] bool or 0/1, the greedy completion of every problem; None if there is none.
        ks: the k of pass@k; None takes the powers of two up to n, and n.
        answers: [P][n] the answers found in the samples, None where there is none; for maj@n.
        same: see `maj_at_k`.

    Returns:
        "greedy" (if given), "avg@n", "pass@k" for every k, "best@n" and "maj@n" (if answers are given), in this order;
        n and k as digits ("avg@8").

    Raises:
        ValueError: if shapes do not match, values are not 0 or 1, a k is outside 1..n, or nothing is given.
    """
    graded = _graded(correct, allow_empty=True)
    problems, n = graded.shape
    if n == 0 and greedy is None:
        raise ValueError(f"correct has shape {graded.shape} and greedy is None; expected samples, greedy, or both")
    if answers is not None and [len(row) for row in answers] != [n] * problems:
        lengths = sorted({len(row) for row in answers})
        raise ValueError(
            f"answers: {counted(len(answers), 'row')} of {lengths}; expected {counted(problems, 'row')} "
            f"of {n}, as in correct"
        )
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
    estimates[f"best@{n}"] = interval([best_at_k(n, int(c), n) for c in successes])
    if answers is not None:
        estimates[f"maj@{n}"] = interval([maj_at_k(*one, same) for one in zip(answers, graded, strict=True)])
    return estimates


def _require_counts(n: int, c: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"c = {c} with n = {n} samples; expected 0 <= c <= n")


def _counts(successes: ArrayLike, samples: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    c = np.asarray(successes)
    if c.ndim != 1 or c.size == 0 or np.shape(samples) not in ((), c.shape):
        shapes = f"successes has shape {c.shape} and samples {np.shape(samples)}"
        raise ValueError(f"{shapes}; expected [P] with P >= 1, and [P] or one number")
    n = np.broadcast_to(np.asarray(samples), c.shape)
    if (wrong := (n < 1) | (c < 0) | (c > n) | (c % 1 != 0) | (n % 1 != 0)).any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"problem {first}: {c[first]} of {n[first]} samples correct; expected whole numbers, 0..n of n"
        )
    return c.astype(np.int64), n.astype(np.int64)


def _graded(correct: ArrayLike, allow_empty: bool = False) -> NDArray[np.float64]:
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] == 0 or (values.shape[1] == 0 and not allow_empty):
        raise ValueError(f"correct has shape {values.shape}; expected [P, n], n samples for each of P >= 1 problems")
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError(f"correct holds {values[~np.isin(values, (0.0, 1.0))][0]}; expected bool, or only 0 and 1")
    return values
