"""Statistics over seeds against closed forms, published values and the formulas of rliable."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dgpo.comparison import statistics

scipy_stats = pytest.importorskip("scipy.stats", reason="statistics need scipy: the extra train or eval")

FAST: dict[str, Any] = {"resamples": 500}
X = np.array([[0.1, 0.4, 0.5, 0.9], [0.3, 0.3, 0.8, 0.6]])
Y = np.array([[0.2, 0.4, 0.3, 0.7], [0.1, 0.3, 0.9, 0.5]])


def draws(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape)


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_of_the_middle_half_of_all_runs() -> None:
    # 0.1 0.3 | 0.3 0.4 0.5 0.6 | 0.8 0.9
    assert statistics.interquartile_mean(X, **FAST).value == pytest.approx((0.3 + 0.4 + 0.5 + 0.6) / 4)


def test_the_interquartile_mean_is_that_of_rliable() -> None:
    """`aggregate_iqm`: scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None)."""
    scores = draws(3, 7)
    expected = scipy_stats.trim_mean(scores, proportiontocut=0.25, axis=None)
    assert statistics.interquartile_mean(scores, **FAST).value == pytest.approx(expected, abs=1e-12)


def test_every_task_weighs_the_same_in_the_mean() -> None:
    found = statistics.mean([np.array([0.0, 1.0]), np.array([0.2, 0.2, 0.2, 0.6])], **FAST)
    assert found.value == pytest.approx((0.5 + 0.3) / 2)


@pytest.mark.parametrize("paired", [True, False])
def test_the_probability_of_improvement_counts_pairs(paired: bool) -> None:
    pairs = [
        (x > y) + 0.5 * (x == y) for task in range(2) for x, y in itertools.product(X[task].tolist(), Y[task].tolist())
    ]
    found = statistics.probability_of_improvement(X, Y, paired=paired, **FAST)
    assert found.value == pytest.approx(np.mean(pairs))


def test_the_probability_of_improvement_is_that_of_rliable() -> None:
    """`probability_of_improvement`: Mann-Whitney's U over the number of pairs, averaged over tasks; ties included."""
    x, y = (np.round(draws(3, size, seed=size), 1) for size in (9, 6))
    u = [scipy_stats.mannwhitneyu(a, b, alternative="greater").statistic / (9 * 6) for a, b in zip(x, y, strict=True)]
    found = statistics.probability_of_improvement(x, y, paired=False, **FAST)
    assert found.value == pytest.approx(np.mean(u), abs=1e-12)
    other = statistics.probability_of_improvement(y, x, paired=False, **FAST)
    assert found.value + other.value == pytest.approx(1.0)
    assert statistics.probability_of_improvement(x, x, paired=True, **FAST).value == 0.5


def test_paired_differences() -> None:
    found = statistics.paired_difference(X, Y, **FAST)
    assert found.value == pytest.approx((0.075 + 0.05) / 2)
    assert found.low < found.value < found.high
    tables = [draws(5, 8, seed=1), draws(4, 8, seed=2)], [draws(5, 8, seed=3), draws(4, 8, seed=4)]
    expected = np.mean([a.mean() - b.mean() for a, b in zip(*tables, strict=True)])
    assert statistics.paired_difference_over_problems(*tables, **FAST).value == pytest.approx(expected)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_close_to_students() -> None:
    """The level is expanded so that both agree for a normal mean."""
    scores = np.random.default_rng(3).normal(0.5, 0.1, (1, 40))
    found = statistics.mean(scores, resamples=20_000)
    t = scipy_stats.t.interval(0.95, 39, scores.mean(), scipy_stats.sem(scores[0]))
    assert (found.low, found.high) == pytest.approx(t, abs=0.004)
    assert found.se == pytest.approx(scipy_stats.sem(scores[0]), rel=0.03)


def test_the_standard_error_of_strata_adds_their_variances() -> None:
    """sqrt(sum_m s²_m / n) / M: the differences *between* tasks do not count."""
    scores = draws(3, 12) / 10 + np.array([[0.0], [0.4], [0.9]])
    expected = math.sqrt((scores.var(axis=1, ddof=1) / 12).sum()) / 3
    assert statistics.mean(scores, resamples=20_000).se == pytest.approx(expected, rel=0.03)


def test_the_standard_error_over_seeds_and_problems_is_that_of_the_pigeonhole_bootstrap() -> None:
    """Its exact variance of a mean of n x m entries, from the sums of squares of rows, columns and what is left.

    With a = SS_rows/(n² m), b = SS_columns/(n m²), e = SS_rest/(n² m²) it is a + b + e.
    """
    table = draws(6, 9)
    centred = table - table.mean()
    rows, columns = centred.mean(1), centred.mean(0)
    rest = centred - rows[:, None] - columns
    exact = (rows**2).sum() / 6**2 + (columns**2).sum() / 9**2 + (rest**2).sum() / (6 * 9) ** 2
    found = statistics.paired_difference_over_problems([table], [np.zeros((6, 9))], resamples=20_000)
    assert found.se == pytest.approx(math.sqrt(exact * 6 / 5), rel=0.03)


def test_evaluations_of_the_same_runs_share_their_seeds() -> None:
    """Two tasks that only repeat each other: as one task, and not as two independent ones."""
    table, zeros = draws(8, 6), np.zeros((8, 6))
    alone = statistics.paired_difference_over_problems([table], [zeros], resamples=20_000)
    # problems that do not differ, so that only seeds are left
    flat = np.repeat(table.mean(axis=1, keepdims=True), 6, axis=1)
    once = statistics.paired_difference_over_problems([flat], [zeros], resamples=20_000)
    shared = statistics.paired_difference_over_problems([flat] * 2, [zeros] * 2, same_runs=True, resamples=20_000)
    apart = statistics.paired_difference_over_problems([flat] * 2, [zeros] * 2, resamples=20_000)
    assert shared.se == pytest.approx(once.se, rel=0.03)
    assert apart.se == pytest.approx(once.se / math.sqrt(2), rel=0.03)
    assert once.se < alone.se


def test_pairs_share_what_the_seed_decides() -> None:
    """Two arms that agree up to a small shift: resampled together, they keep their distance."""
    scores = draws(1, 12, low=0.1, high=0.9)
    found = statistics.paired_difference(scores + 0.05, scores, **FAST)
    assert (found.low, found.high) == pytest.approx((0.05, 0.05))
    paired = statistics.probability_of_improvement(scores + 0.02, scores, paired=True, **FAST)
    apart = statistics.probability_of_improvement(scores + 0.02, scores, paired=False, **FAST)
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)


def test_one_seed_says_nothing() -> None:
    one, many = np.array([0.5]), np.array([0.4, 0.6])
    for found, ends in (
        (statistics.mean([many, one]), (0.0, 1.0)),
        (statistics.interquartile_mean([one]), (0.0, 1.0)),
        (statistics.probability_of_improvement([one], [many], paired=False), (0.0, 1.0)),
        (statistics.paired_difference([one], [one]), (-1.0, 1.0)),
        (statistics.paired_difference_over_problems([draws(1, 5)], [draws(1, 5)]), (-1.0, 1.0)),
        (statistics.paired_difference_over_problems([draws(5, 1)], [draws(5, 1)]), (-1.0, 1.0)),
    ):
        assert (found.low, found.high) == ends
    middle, low, high = statistics.curve_band([[0.2, 0.4]])
    assert (middle.tolist(), low.tolist(), high.tolist()) == ([0.2, 0.4], [0.0, 0.0], [1.0, 1.0])


def test_the_same_input_gives_the_same_interval() -> None:
    assert statistics.mean(X, seed=1, **FAST) == statistics.mean(X, seed=1, **FAST)
    assert statistics.mean(X, seed=1, **FAST) != statistics.mean(X, seed=2, **FAST)


def test_a_higher_confidence_is_a_wider_interval() -> None:
    narrow, wide = (statistics.mean(draws(2, 9), confidence=level, **FAST) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_band_of_curves_has_the_interval_of_each_step() -> None:
    curves = draws(10, 4)
    middle, low, high = statistics.curve_band(curves, resamples=10_000)
    assert middle == pytest.approx(curves.mean(axis=0))
    for step in range(4):
        alone = statistics.mean([curves[:, step]], seed=7)
        assert (low[step], high[step]) == pytest.approx((alone.low, alone.high), abs=0.015)


def test_few_seeds_are_noted() -> None:
    assert "one seed" in str(statistics.coverage_note(1))
    assert "too narrow" in str(statistics.coverage_note(4))
    assert statistics.coverage_note(5) is None


# --- tests and power --------------------------------------------------------------------------------------------------


def test_the_p_value_of_few_seeds_is_counted_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: of 8 patterns of signs, two give a sum as far from 0 as 0.6."""
    assert statistics.paired_p_value([[0.1, 0.2, 0.3]], [[0.0, 0.0, 0.0]]) == 2 / 8 == statistics.smallest_p_value(3)
    # sums of ±0.1 ± 0.2 ± 0.3: 0.4 and more in four of eight
    assert statistics.paired_p_value([[0.0, 0.2, 0.3]], [[0.1, 0.0, 0.0]]) == 4 / 8


def test_the_p_value_is_exact_for_16_seeds() -> None:
    x, y = draws(1, 16, seed=5), draws(1, 16, seed=6)
    d = (x - y)[0]
    signs = np.array(list(itertools.product((-1, 1), repeat=16)))
    exact = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
    assert statistics.paired_p_value(x, y) == pytest.approx(exact, abs=1e-12)


def test_tasks_weigh_the_same_in_the_test() -> None:
    """A task with many seeds does not outvote another: the test is of the mean over tasks."""
    x, y = [np.full(2, 0.4), np.full(8, 0.1)], [np.zeros(2), np.zeros(8)]
    flipped = [np.full(2, 0.4), np.full(8, 0.0)], [np.zeros(2), np.full(8, 0.1)]
    assert statistics.paired_p_value(x, y) == statistics.smallest_p_value(10)
    assert 4 / 2**10 <= statistics.paired_p_value(*flipped) < 1


@pytest.mark.parametrize(
    ("seeds", "paired", "power", "difference"),
    [
        # R's examples: power.t.test(n = 20, delta = 1) has power 0.8689528; power.t.test(power = .90, delta = 1) needs
        # n = 22.02110
        (20, False, 0.8689528, 1.0),
        # Cohen (1988), table 2.4.1: 26 in each group for d = 0.8 and 64 for d = 0.5 at power 0.8, two-sided 5 %
        (26, False, 0.8, 0.8),
        (64, False, 0.8, 0.5),
        # pairs: 34 for a difference of 0.5 of its own standard deviation, which is sqrt(2) of an arm's, and 15 for 0.8
        (34, True, 0.8, 0.5 * math.sqrt(2)),
        (15, True, 0.8, 0.8 * math.sqrt(2)),
    ],
)
def test_the_smallest_difference_is_the_published_one(
    seeds: int, paired: bool, power: float, difference: float
) -> None:
    """Tables have the smallest n with at least the power: n finds the difference, and n - 1 does not."""
    found = statistics.smallest_difference(seeds, 1.0, paired=paired, power=power)
    assert found <= difference + 1e-6
    if power == 0.8:
        assert statistics.smallest_difference(seeds - 1, 1.0, paired=paired, power=power) > difference
    else:
        assert found == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_the_smallest_difference_is_found_as_often_as_promised(paired: bool) -> None:
    rng = np.random.default_rng(0)
    n, std, alpha, correlation = 6, 0.1, 0.05 / 3, 0.6
    delta = statistics.smallest_difference(n, std, comparisons=3, paired=paired, correlation=correlation)
    shared = math.sqrt(correlation if paired else 0.0)
    common = rng.normal(0, std, (8_000, n)) * shared
    x, y = (common + rng.normal(0, std, (8_000, n)) * math.sqrt(1 - shared**2) for _ in range(2))
    test = scipy_stats.ttest_rel if paired else scipy_stats.ttest_ind
    found = test(x + delta, y, axis=1).pvalue < alpha
    assert found.mean() == pytest.approx(0.8, abs=0.015)


def test_what_a_comparison_detects_is_what_a_design_with_its_spread_finds() -> None:
    x, y = draws(1, 9, seed=1), draws(1, 9, seed=2)
    spread = float((x - y).std(ddof=1))
    # an arm's standard deviation is the difference's over sqrt(2) without correlation
    expected = statistics.smallest_difference(9, spread / math.sqrt(2), comparisons=4)
    assert statistics.detectable(x, y, comparisons=4) == pytest.approx(expected)
    # a second task like the first halves the variance, and adds degrees of freedom
    twice = statistics.detectable(np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0), comparisons=4)
    assert twice < expected / math.sqrt(2)
    assert statistics.detectable([[0.5]], [[0.4]]) == math.inf


def test_the_smallest_difference_grows_with_comparisons_and_noise() -> None:
    one = statistics.smallest_difference(16, 0.05)
    assert statistics.smallest_difference(16, 0.1) == pytest.approx(2 * one)
    assert statistics.smallest_difference(16, 0.05, comparisons=18) > one
    assert statistics.smallest_difference(16, 0.05, correlation=0.5) == pytest.approx(one / math.sqrt(2))
    assert statistics.smallest_difference(16, 0.05, paired=False) < one
    assert statistics.smallest_difference(1, 0.05) == math.inf
    # few degrees of freedom at a strict level: scipy's noncentral t gives NaN there
    assert statistics.smallest_difference(2, 0.05, comparisons=100) == pytest.approx(81.585, rel=1e-3)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.mean([]), "scores is empty; expected one array of scores for each task"),
        (lambda: statistics.mean([[0.5], []]), r"scores\[1\] has shape \(0,\); expected \[seeds\]"),
        (lambda: statistics.mean([[0.5, 2.0]]), r"scores\[0\] holds 2.0; expected values in \[0, 1\]"),
        (lambda: statistics.mean([[0.5, math.nan]]), r"scores\[0\] holds nan"),
        (lambda: statistics.mean([[0.5, 0.6]], confidence=1.0), "confidence = 1.0 is not allowed"),
        (lambda: statistics.mean([[0.5, 0.6]], resamples=10), "resamples = 10 is not allowed"),
        (lambda: statistics.paired_difference(X, Y[:1]), "scores of 2 tasks and baseline of 1"),
        (lambda: statistics.paired_difference(X, Y[:, :3]), r"shape \(4,\) and baseline \(3,\)"),
        (lambda: statistics.paired_difference_over_problems(X, Y), r"expected \[seeds, problems\]"),
        (lambda: statistics.probability_of_improvement(X, Y[:, :3], paired=True), "expected the same seeds in both"),
        (
            lambda: statistics.paired_difference_over_problems(
                [np.zeros((2, 3)), np.zeros((4, 3))], [np.zeros((2, 3)), np.zeros((4, 3))], same_runs=True
            ),
            "tasks have 2, 4 seeds; expected the same runs on every task",
        ),
        (lambda: statistics.smallest_difference(0, 0.1), "seeds = 0 is not allowed"),
        (lambda: statistics.smallest_difference(3, 0.1, power=0.01), "expected alpha < power < 1"),
        (lambda: statistics.smallest_p_value(0), "pairs = 0 is not allowed"),
        (lambda: statistics.curve_band([0.1, 0.2]), "curves"),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
