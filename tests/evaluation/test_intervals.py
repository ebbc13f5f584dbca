"""Intervals over problems: their formula, what they cover, and what they can detect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from dgpo.evaluation.estimates import pass_at_k
from dgpo.evaluation.intervals import (
    bounded,
    bounded_difference,
    detectable_of_samples,
    interval,
    interval_of_differences,
)

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def by_hand(values, pseudo, confidence=0.95):
    """Mean, half-width and standard error with pseudo-problems."""
    found = np.array([*values, *pseudo])
    error = found.std(ddof=1) / math.sqrt(found.size)
    return found.mean(), t.ppf((1 + confidence) / 2, found.size - 1) * error, error


def test_the_formula_for_one_model():
    values = np.random.default_rng(1).random(30)
    middle, half, error = by_hand(values, (0, 1))
    found = interval(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert found.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(30))
    assert found.detectable == pytest.approx(math.sqrt(2) * error * (t.ppf(0.975, 31) + t.ppf(0.8, 31)))
    assert interval(values) == found


def test_the_formula_for_a_difference():
    d = np.array([0.5, -0.25, 0, 0, 0.25])
    h = math.sqrt((0.25 + 2 * 0.0625) / 3)
    middle, half, error = by_hand(d, (-h, h))
    found = interval_of_differences(d)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    assert found.detectable == pytest.approx(error * (t.ppf(0.975, 6) + t.ppf(0.8, 6)))
    _, half, _ = by_hand(np.zeros(9), (-1, 1))
    found = interval_of_differences(np.zeros(9))
    assert (found.value, found.low, found.high) == (0, pytest.approx(-half), pytest.approx(half))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_alike_is_no_certainty(value):
    widths = [found.high - found.low for found in (interval([value] * size) for size in (1, 2, 5, 30, 500))]
    assert widths[0] == 1
    assert widths == sorted(widths, reverse=True)
    assert widths[3] == pytest.approx(0.095, abs=1e-3)
    assert widths[4] == pytest.approx(3 / 500, rel=0.03)  # the rule of three


@given(SHARES, st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.999]))
def test_it_holds_the_value_and_stays_within_its_range(values, confidence):
    found = interval(values, confidence)
    assert 0 <= found.low <= found.value + 1e-12 <= found.high + 2e-12
    assert found.high <= 1 + 1e-12
    mirrored = interval([1 - value for value in values], confidence)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-12)
    difference = interval_of_differences(values, confidence)
    opposite = interval_of_differences([-value for value in values], confidence)
    assert -1 <= difference.low <= difference.value + 1e-12 <= difference.high + 2e-12
    assert (-opposite.high, -opposite.low) == pytest.approx((difference.low, difference.high), abs=1e-12)


def test_it_widens_with_confidence():
    found = [interval([0.0] * 2 + [1.0] * 28, level) for level in (0.5, 0.9, 0.99)]
    assert found[0].low > found[1].low > found[2].low


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([], 0.95, r"per_problem has shape \(0,\)"),
        ([[1.0]], 0.95, "per_problem has shape"),
        ([0.0, float("nan")], 0.95, r"per_problem\[1\] = nan; expected values in \[0, 1\]"),
        ([0.0, 1.5], 0.95, r"per_problem\[1\] = 1.5"),
        ([-0.5], 0.95, r"per_problem\[0\] = -0.5"),
        ([0.0, 1.0], 1.0, "confidence = 1.0"),
    ],
)
def test_refuses(values, confidence, message):
    with pytest.raises(ValueError, match=message):
        interval(values, confidence)
    if values != [-0.5]:
        with pytest.raises(ValueError, match="expected"):
            interval_of_differences(values, confidence)


# --- coverage: where the percentile bootstrap held the truth in 39 to 90 % of the cases -------------------------------

TRIALS = 4000
SLACK = 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def hard(rng, problems, mean):
    """p ~ Beta with this mean and a + b = 2: U-shaped, as benchmarks are."""
    return rng.beta(2 * mean, 2 * (1 - mean), (TRIALS, problems))


def held(values, truth, method=bounded):
    low, high, *_ = method(values)
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())


@pytest.mark.parametrize("mean", [0.02, 0.09, 0.5, 0.91, 0.98])
@pytest.mark.parametrize("problems", [15, 30, 100])
def test_avg_and_greedy_hold_the_truth(problems, mean):
    rng = np.random.default_rng([problems, round(100 * mean)])
    p = hard(rng, problems, mean)
    assert held(rng.binomial(32, p) / 32, mean) >= 0.94 - SLACK
    assert held(rng.binomial(1, p).astype(float), mean) >= 0.94 - SLACK


@pytest.mark.parametrize("p", [0.4, 0.6, 0.9])
def test_pass_at_8_near_1_holds_the_truth(p):
    rng = np.random.default_rng(8)
    table = np.array([pass_at_k(32, c, 8) for c in range(33)])
    assert held(table[rng.binomial(32, p, (TRIALS, 30))], 1 - (1 - p) ** 8) >= 0.94 - SLACK


@pytest.mark.parametrize("samples", [1, 8, 32])
@pytest.mark.parametrize("mean", [0.02, 0.09, 0.5, 0.91])
def test_equal_models_are_told_apart_in_at_most_5_percent(mean, samples):
    rng = np.random.default_rng([samples, round(100 * mean)])
    p = hard(rng, 30, mean)
    d = (rng.binomial(samples, p) - rng.binomial(samples, p)) / samples
    assert 1 - held(d, 0.0, bounded_difference) <= 0.05 + SLACK


# --- what can be detected ---------------------------------------------------------------------------------------------


def test_a_difference_as_large_as_the_detectable_one_is_found_in_80_percent():
    rng = np.random.default_rng(3)
    problems, samples = 100, 16
    p = rng.uniform(0.1, 0.8, (TRIALS, problems))

    def differences(gain):
        return (rng.binomial(samples, p + gain) - rng.binomial(samples, p)) / samples

    *_, error, quantiles = bounded_difference(differences(0.045))
    low = bounded_difference(differences(float(np.median(error)) * quantiles))[0]
    assert float((low > 0).mean()) == pytest.approx(0.8, abs=0.03)


def test_what_the_noise_of_samples_hides():
    """Two models with the same chances: no difference, and the standard error that the formula says."""
    rng = np.random.default_rng(4)
    p = rng.uniform(0.05, 0.95, 60)
    a, b = rng.binomial(32, np.broadcast_to(p, (TRIALS, 60))), rng.binomial(32, np.broadcast_to(p, (TRIALS, 60)))
    spread = ((a - b) / 32).mean(axis=1).std()
    found = np.mean([detectable_of_samples([(32, int(c)) for c in row]) for row in a[:50]])
    assert found == pytest.approx(spread * (t.ppf(0.975, 61) + t.ppf(0.8, 61)), rel=0.06)
    assert detectable_of_samples([(32, 32)] * 30) > 0


def test_unpaired_it_is_the_difference_between_two_such_evaluations():
    """Two models on problems of their own, told apart by Welch's test."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(5)
    first, second = rng.uniform(0.1, 0.7, (2, TRIALS, 100))
    gain = float(np.median([interval(values).detectable for values in first[:50]]))
    # a little more often than in 80 %: the pseudo-problems are wider than these
    assert 0.78 <= float((ttest_ind(second + gain, first, axis=1).pvalue < 0.05).mean()) <= 0.88
