"""Statistics of runs over seeds: interquartile mean, probability of improvement, paired differences, and what a design
can find.

Scores of one arm are a list of arrays [seeds], one per task; a matrix [tasks, seeds] is such a list. Tasks are strata:
the seeds of a task are resampled among themselves, and every task weighs the same, except in the interquartile mean,
which pools all runs. Aggregates and stratified bootstrap are those of Agarwal et al. (2021, arXiv 2108.13264).

Intervals are percentile bootstrap intervals of an expanded level, against the narrowness bias of few values
(Hesterberg, The American Statistician 69, 2015): quantiles at

    a/2 = Φ(-sqrt(n / (n - 1)) t_df),    n seeds of the smallest task, df = sum over tasks of (seeds - 1)

instead of (1 - confidence)/2, where t_df is the quantile of Student's t for the confidence. The plain percentile
interval ignores that n values vary less around their own mean than around the true one: with 8 seeds of normal scores
on one task, 95 % intervals contain the true value in 89 % of the cases, with the correction in 95 %. No level helps
with 3 or 4 seeds, because no resample lies beyond the extreme ones; see `coverage_note`. If all seeds have the same
score, an interval has no width, which does not mean certainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dgpo.counts import counted
from dgpo.evaluation.estimates import RESAMPLED_VALUES
from dgpo.evaluation.intervals import POWER
from dgpo.evaluation.paired import sign_flip_p_value
from dgpo.fields import check_value
from dgpo.runs.results import Estimate

FEW_SEEDS = 5
"""With fewer seeds in every task, intervals are known to be too narrow."""

ALPHA = 0.05
"""Level of all tests of a comparison together."""

EXACT_SEEDS = 16
"""Up to so many paired runs, the sign-flip test tries every pattern of signs."""

Values = NDArray[np.float64]
Scores = Sequence[ArrayLike] | Values
"""Per task, the scores of its seeds."""

Statistic = Callable[..., Values]
Strata = Sequence[NDArray[Any]]


def mean(
    scores: Scores, *, least: float = 0.0, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean over tasks of the mean over seeds, with a stratified bootstrap interval.

    Args:
        scores: per task, an array [seeds] of values in [least, 1].
        least: smallest possible score. Where a task has one seed, nothing is known about the spread, and the interval
            is everything that is possible.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: of the resamples; the same input gives the same interval.

    Raises:
        ValueError: no task, a task without seeds, values that are not in the range, a confidence outside (0, 1).
    """
    tasks = _tasks(scores, "scores", least)
    return _bootstrapped(tasks, _mean_of_means, list(map(len, tasks)), least, confidence, resamples, seed)


def interquartile_mean(scores: Scores, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean of the middle half of all runs of all tasks, with a stratified bootstrap interval.

    A quarter of the runs, rounded down, is left out at either end (`scipy.stats.trim_mean` at 25 %, as rliable's
    `aggregate_iqm`): with fewer than 4 runs it is the mean. It is less affected by outliers than the mean, and less
    variable than the median; so it also says nothing about a method that collapses in a quarter of its runs.

    Args:
        scores: as for `mean`.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: as for `mean`.

    Raises:
        ValueError: as `mean`.
    """
    tasks = _tasks(scores, "scores", 0.0)
    return _bootstrapped(tasks, _middle, list(map(len, tasks)), 0.0, confidence, resamples, seed)


def probability_of_improvement(
    scores: Scores,
    baseline: Scores,
    *,
    paired: bool,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Probability that a run of X scores higher than a run of Y on a task, averaged over tasks::

        1/M sum_m 1/(N_m K_m) sum_i sum_j S(x_mi, y_mj),    S = 1 if x > y, 1/2 if x = y, 0 otherwise

    with N_m seeds of X and K_m of Y on task m (Agarwal et al., arXiv 2108.13264): the Mann-Whitney U statistic divided
    by its largest value. 1/2 if both are alike. It does not say how large the improvement is.

    Args:
        scores: X, as for `mean`.
        baseline: Y, the same tasks.
        paired: whether entry i of both is the same seed. Then seeds are resampled with both of their runs, which share
            what the seed decides; else each arm by itself, as rliable does.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: as for `mean`.

    Raises:
        ValueError: as `mean`; different numbers of tasks, or of seeds if `paired`.
    """
    x, y = _tasks(scores, "scores", 0.0), _tasks(baseline, "baseline", 0.0)
    _same_tasks(x, y, seeds=paired)
    tables = [(a[:, None] > b) + 0.5 * (a[:, None] == b) for a, b in zip(x, y, strict=True)]
    if paired:
        index: list[NDArray[Any]] = [np.arange(len(a)) for a in x]
        counts = list(map(len, x))
    else:
        index = [np.arange(size) for table in tables for size in table.shape]
        counts = [min(table.shape) for table in tables]
    return _bootstrapped(index, _mean_of_tables(tables, joint=paired), counts, 0.0, confidence, resamples, seed)


def paired_difference(
    scores: Scores, baseline: Scores, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """X - Y of the runs with the same seed, as `mean` of these differences: mean over tasks of the mean over seeds.

    Args:
        scores: X, as for `mean`; entry i of a task is the same seed in both.
        baseline: Y.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: as for `mean`.

    Raises:
        ValueError: as `mean`; different numbers of tasks or seeds.
    """
    differences = _differences(scores, baseline)
    return mean(differences, least=-1.0, confidence=confidence, resamples=resamples, seed=seed)


def paired_difference_over_problems(
    scores: Scores,
    baseline: Scores,
    *,
    same_runs: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """X - Y of the same seed and the same problem, with an interval for other seeds *and* other problems.

    Seeds and problems are resampled independently of each other, within a task (the pigeonhole bootstrap: Owen, The
    Annals of Applied Statistics 1, 2007). Variation that belongs to neither alone is counted up to three times, so the
    interval is wider than needed where the noise of single problems dominates: in simulations, 95 % intervals of 5
    seeds or more contain the true value in 94 to 100 % of the cases.

    Args:
        scores: X: per task, an array [seeds, problems] of scores in [0, 1].
        baseline: Y: the same seeds and problems in the same order.
        same_runs: whether row i of every task is the same run, evaluated on several tasks. Then a seed is resampled
            with all of its tasks.
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: as for `mean`.

    Raises:
        ValueError: as `mean`; different shapes; different numbers of seeds if `same_runs`.
    """
    tables = _differences(scores, baseline, dimensions=2)
    counts = [min(table.shape) for table in tables]
    if not same_runs:
        index: list[NDArray[Any]] = [np.arange(size) for table in tables for size in table.shape]
        return _bootstrapped(index, _mean_of_tables(tables, joint=False), counts, -1.0, confidence, resamples, seed)
    if len(seeds := {len(table) for table in tables}) > 1:
        raise ValueError(f"tasks have {', '.join(map(str, sorted(seeds)))} seeds; expected the same runs on every task")

    def statistic(rows: Values, *columns: Values, axis: int) -> Values:
        entries = [_entries(table, rows, places) for table, places in zip(tables, columns, strict=True)]
        return np.mean(entries, axis=0)

    index = [np.arange(len(tables[0])), *(np.arange(table.shape[1]) for table in tables)]
    return _bootstrapped(index, statistic, [min(counts)], -1.0, confidence, resamples, seed)


def paired_p_value(scores: Scores, baseline: Scores, *, resamples: int = 2**EXACT_SEEDS, seed: int = 0) -> float:
    """Two-sided sign-flip test of `paired_difference` = 0 (`dgpo.evaluation.paired.sign_flip_p_value`).

    Exact if either arm could have had either score of a seed, which holds if the arms do not differ. Differences are
    weighted as in `paired_difference`. It is never below `smallest_p_value`.

    Args:
        scores: X, as for `paired_difference`.
        baseline: Y.
        resamples: sign patterns; all are tried if there are no more.
        seed: of the patterns, if they are drawn.

    Raises:
        ValueError: as `paired_difference`.
    """
    differences = _differences(scores, baseline)
    weighted = [values / len(values) for values in differences]
    return sign_flip_p_value(np.concatenate(weighted), resamples=resamples, seed=seed)


def smallest_p_value(pairs: int) -> float:
    """The smallest p-value that a two-sided sign-flip test of so many differences can give, 2^(1 - pairs).

    With 5 pairs it is 0.0625: no result of 5 seeds on one task is significant at 5 %.

    Raises:
        ValueError: `pairs` is not an integer >= 1.
    """
    check_value("pairs", pairs, "[1, inf)", whole=True)
    return 2.0 ** (1 - pairs)


def smallest_difference(
    seeds: int,
    std: float,
    *,
    comparisons: int = 1,
    alpha: float = ALPHA,
    power: float = POWER,
    paired: bool = True,
    correlation: float = 0.0,
) -> float:
    """The smallest true difference of two means over seeds that a two-sided t-test finds with this power.

    With δ such that a noncentral t of df degrees of freedom and noncentrality δ lies outside ±t_(1 - alpha/(2 m), df)
    with probability `power`, where m is the number of comparisons (Bonferroni; Holm finds no less)::

        paired      δ · std · sqrt(2 (1 - correlation) / n),    df = n - 1
        unpaired    δ · std · sqrt(2 / n),                      df = 2n - 2

    The sign-flip test finds this difference of normal scores with a chance of 0.7 to 0.82 from 8 seeds on where the
    power is 0.8, less with fewer, and never where it cannot reach the level (`smallest_p_value`). A difference of means
    over tasks is smaller by sqrt(tasks) if the tasks vary alike.

    Args:
        seeds: n, of each arm.
        std: standard deviation between the seeds of one arm.
        comparisons: m.
        alpha: level of all comparisons together, in (0, 1).
        power: in (alpha, 1).
        paired: whether both arms use the same seeds.
        correlation: of the scores of both arms over these seeds, in [-1, 1]; 0 if the seed decides nothing that they
            share. Unused if not `paired`.

    Returns:
        in the unit of `std`; infinite for one seed, which finds nothing.

    Raises:
        ValueError: an argument is outside its range.
    """
    check_value("seeds", seeds, "[1, inf)", whole=True)
    check_value("std", std, "[0, inf)")
    check_value("correlation", correlation, "[-1, 1]")
    _check_design(comparisons, alpha, power)
    if seeds == 1:
        return math.inf
    shared = correlation if paired else 0.0
    freedom = seeds - 1 if paired else 2 * seeds - 2
    return _noncentrality(freedom, alpha / comparisons, power) * std * math.sqrt(2 * (1 - shared) / seeds)


def detectable(
    scores: Scores, baseline: Scores, *, comparisons: int = 1, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest true `paired_difference` that a comparison with the spread of this one finds::

        δ · sqrt(sum_m s_m² / n_m) / M,    df = sum_m (n_m - 1)

    with δ as in `smallest_difference` and s_m the standard deviation of the differences of task m. For a design whose
    spread is only supposed, `smallest_difference`.

    Args:
        scores: X, as for `paired_difference`.
        baseline: Y.
        comparisons: as in `smallest_difference`.
        alpha: likewise.
        power: likewise.

    Returns:
        infinite if a task has a single seed.

    Raises:
        ValueError: as `paired_difference` and `smallest_difference`.
    """
    _check_design(comparisons, alpha, power)
    differences = _differences(scores, baseline)
    if min(map(len, differences)) == 1:
        return math.inf
    error = math.sqrt(sum(float(values.var(ddof=1)) / len(values) for values in differences)) / len(differences)
    freedom = sum(len(values) - 1 for values in differences)
    return _noncentrality(freedom, alpha / comparisons, power) * error


def curve_band(
    curves: ArrayLike, *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> tuple[Values, Values, Values]:
    """Mean, lower and upper ends over seeds at every step of learning curves; each interval is for its step alone.

    Args:
        curves: [seeds, steps] scores in [0, 1].
        confidence: in (0, 1).
        resamples: bootstrap resamples.
        seed: as for `mean`.

    Returns:
        three arrays [steps]; for one seed, the ends are 0 and 1.

    Raises:
        ValueError: not two-dimensional, empty, values outside [0, 1].
    """
    (values,) = _tasks([curves], "curves", 0.0, dimensions=2)
    check_value("confidence", confidence, "(0, 1)")
    middle = values.mean(axis=0)
    if len(values) == 1:
        return middle, np.zeros_like(middle), np.ones_like(middle)
    level = _expanded([len(values)], confidence)
    low, high, _ = _resampled([values], _mean_of_means, level, resamples, seed, axis=0)
    return middle, np.minimum(low, middle), np.maximum(high, middle)


def coverage_note(seeds: int) -> str | None:
    """What is wrong with intervals of so few seeds in the smallest task; None if nothing is known to be.

    Simulated for normal, skewed and two-peaked scores (`tests/comparison/test_interval_coverage.py`).
    """
    if seeds == 1:
        return "one seed says nothing about other seeds: intervals are everything that is possible"
    if seeds < FEW_SEEDS:
        return (
            f"with {counted(seeds, 'seed')} the intervals are too narrow: 95 % intervals of 3 seeds on one "
            f"task contain the true value in about 70 % of the cases; use {FEW_SEEDS} seeds or more, better 8"
        )
    return None


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def _bootstrapped(
    strata: Strata,
    statistic: Statistic,
    seeds: Sequence[int],
    least: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    check_value("confidence", confidence, "(0, 1)")
    check_value("resamples", resamples, "[100, inf)", whole=True)
    value = float(statistic(*strata, axis=-1))
    if min(seeds) == 1:
        return Estimate(value, least, 1.0, 0.0)
    low, high, error = _resampled(strata, statistic, _expanded(seeds, confidence), resamples, seed)
    # the variance of n resampled values is too small by (n - 1)/n; an end may miss the value by rounding
    error *= math.sqrt(min(seeds) / (min(seeds) - 1))
    return Estimate(value, min(float(low), value), max(float(high), value), float(error))


def _resampled(
    strata: Strata, statistic: Statistic, level: float, resamples: int, seed: int, axis: int = -1
) -> tuple[Values, Values, Values]:
    """Percentile interval of this level and standard error; every stratum is resampled by itself along `axis`."""
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(strata),
        statistic,
        n_resamples=resamples,
        batch=max(1, RESAMPLED_VALUES // sum(values.size for values in strata)),
        vectorized=True,
        axis=axis,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),  # `rng` in newer scipy, which takes this name too
    )
    return found.confidence_interval.low, found.confidence_interval.high, found.standard_error


def _expanded(seeds: Sequence[int], confidence: float) -> float:
    """The level at which a percentile interval covers a normal mean as often as Student's t does."""
    from scipy.special import ndtr, stdtrit

    n, freedom = min(seeds), sum(seeds) - len(seeds)
    return 1 - 2 * float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(freedom, (1 + confidence) / 2)))


def _mean_of_means(*tasks: Values, axis: int) -> Values:
    return np.mean([values.mean(axis) for values in tasks], axis=0)


def _middle(*tasks: Values, axis: int) -> Values:
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(np.concatenate(tasks, axis), 0.25, axis=axis))


def _mean_of_tables(tables: Sequence[Values], *, joint: bool) -> Statistic:
    """A statistic of indices of rows [..., n] and columns [..., m], alternating, for each table: the mean over tables
    of the mean entry. If `joint`, there are rows only, and columns are the same."""

    def statistic(*index: Values, axis: int) -> Values:
        rows = index if joint else index[::2]
        columns = index if joint else index[1::2]
        return np.mean(
            [_entries(*one) for one in zip(tables, rows, columns, strict=True)],
            axis=0,
        )

    return statistic


def _entries(table: Values, rows: Values, columns: Values) -> Values:
    """Mean of table[rows][:, columns] for many samples of rows [..., n] and columns [..., m]."""
    # how often each row was drawn, so that [..., n, m] is not needed
    drawn = (rows[..., None] == np.arange(len(table))).sum(-2)
    sums = drawn @ table
    return np.asarray(np.take_along_axis(sums, columns.astype(np.intp), -1).mean(-1) / len(table))


def _noncentrality(freedom: int, alpha: float, power: float) -> float:
    """δ at which |T| of a noncentral t exceeds the critical value with this probability."""
    from scipy.optimize import brentq
    from scipy.special import stdtrit
    from scipy.stats import ncf

    critical = -float(stdtrit(freedom, alpha / 2))
    # T² is noncentral F, which stays accurate at the large δ of few degrees of freedom, where scipy's nct gives NaN
    missing = lambda delta: float(ncf.sf(critical**2, 1, freedom, delta**2)) - power  # noqa: E731
    high = 2.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high, xtol=1e-10))


# --- the arguments ----------------------------------------------------------------------------------------------------


def _check_design(comparisons: int, alpha: float, power: float) -> None:
    check_value("comparisons", comparisons, "[1, inf)", whole=True)
    check_value("alpha", alpha, "(0, 1)")
    if not alpha < power < 1:
        raise ValueError(f"power = {power} with alpha = {alpha}; expected alpha < power < 1")


def _tasks(scores: Scores, name: str, least: float, dimensions: int = 1) -> list[Values]:
    tasks = [np.asarray(values, dtype=np.float64) for values in scores]
    if not tasks:
        raise ValueError(f"{name} is empty; expected one array of scores for each task")
    what = "[seeds]" if dimensions == 1 else "[seeds, problems]"
    for place, values in enumerate(tasks):
        if values.ndim != dimensions or not values.size:
            raise ValueError(f"{name}[{place}] has shape {values.shape}; expected {what}, scores of one task")
        # rounding of a mean may leave the range by a little
        wrong = ~((values >= least - 1e-9) & (values <= 1 + 1e-9))
        if wrong.any():
            found = values[tuple(np.argwhere(wrong)[0])]
            raise ValueError(f"{name}[{place}] holds {found}; expected values in [{least:g}, 1]")
    return tasks


def _same_tasks(x: Sequence[Values], y: Sequence[Values], *, seeds: bool) -> None:
    if len(x) != len(y):
        raise ValueError(f"scores of {len(x)} tasks and baseline of {len(y)}; expected the same tasks in both")
    for place, (a, b) in enumerate(zip(x, y, strict=True)):
        if seeds and a.shape != b.shape:
            raise ValueError(
                f"task {place}: scores have shape {a.shape} and baseline {b.shape}; expected the same seeds in both"
            )


def _differences(scores: Scores, baseline: Scores, dimensions: int = 1) -> list[Values]:
    x, y = _tasks(scores, "scores", 0.0, dimensions), _tasks(baseline, "baseline", 0.0, dimensions)
    _same_tasks(x, y, seeds=True)
    return [a - b for a, b in zip(x, y, strict=True)]
