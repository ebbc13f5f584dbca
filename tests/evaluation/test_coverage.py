"""How often the intervals hold the truth, and how often the tests cry wolf: simulated models, problems and samples.

Problems are of two kinds, nearly hopeless and nearly certain, as the benchmarks are for a trained model.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from dgpo.evaluation.estimates import interval_two_level
from dgpo.evaluation.intervals import interval
from dgpo.evaluation.paired import paired

N = 8
TRUTH = 0.5


def chances(rng: np.random.Generator, problems: int) -> np.ndarray:
    """p_i ~ half Beta(1/2, 6), half Beta(6, 1/2); their mean is 1/2."""
    return np.where(rng.random(problems) < 0.5, rng.beta(0.5, 6, problems), rng.beta(6, 0.5, problems))


def coverage(problems: int, trials: int, resamples: int) -> dict[str, float]:
    """Share of trials in which each kind of interval for avg@8 holds the truth, which is about problems not drawn."""
    rng = np.random.default_rng([problems, trials])
    held = dict.fromkeys(("interval", "two-level", "1.96 se", "naive"), 0)
    for trial in range(trials):
        successes = rng.binomial(N, chances(rng, problems))
        found = interval(successes / N)
        both = interval_two_level(successes, N, resamples=resamples, seed=trial)
        naive = (found.value * (1 - found.value) / (problems * N)) ** 0.5
        held["interval"] += found.low <= TRUTH <= found.high
        held["two-level"] += both.low <= TRUTH <= both.high
        held["1.96 se"] += abs(found.value - TRUTH) <= 1.96 * found.se
        held["naive"] += abs(found.value - TRUTH) <= 1.96 * naive
    return {name: count / trials for name, count in held.items()}


def alarms(problems: int, trials: int, resamples: int, gain: float = 0.0) -> dict[str, float]:
    """Share of trials in which B is told from A; B's chance is higher by gain (1 - p), or the same for gain = 0."""
    rng = np.random.default_rng([problems, trials])
    told = dict.fromkeys(("sign flip", "interval", "two-level", "samples alone", "unpaired"), 0)
    for trial in range(trials):
        p = chances(rng, problems)
        a, b = rng.binomial(N, p), rng.binomial(N, p + gain * (1 - p))
        found = paired((a, N), (b, N), resamples=resamples, seed=trial)
        told["sign flip"] += found.p_value <= 0.05
        told["interval"] += not found.difference.low <= 0 <= found.difference.high
        told["two-level"] += not found.two_level.low <= 0 <= found.two_level.high
        told["samples alone"] += abs(found.difference.value) > 1.96 * found.generation_se
        told["unpaired"] += ttest_ind(a, b).pvalue <= 0.05
    return {name: count / trials for name, count in told.items()}


@pytest.mark.parametrize(("problems", "trials"), [(30, 400), (200, 150)])
def test_intervals_of_avg_hold_the_truth_as_often_as_they_say(problems, trials):
    """94 to 97 %, with 3 standard errors of the simulation on either side; the naive one is wrong too often by far."""
    found = coverage(problems, trials, resamples=300)
    slack = 3 * (0.06 / trials) ** 0.5
    for name in ("interval", "two-level", "1.96 se"):
        assert 0.94 - slack <= found[name] <= 0.97 + slack, found
    assert found["naive"] < 0.7, found


@pytest.mark.parametrize(("problems", "trials"), [(30, 500), (200, 100)])
def test_equal_models_are_told_apart_as_rarely_as_the_test_says(problems, trials):
    found = alarms(problems, trials, resamples=300)
    slack = 3 * (0.06 / trials) ** 0.5
    assert found["sign flip"] <= 0.05 + slack, found  # exact, so at most 5 %
    assert found["interval"] <= 0.05 + slack, found
    assert 0.05 - slack <= found["samples alone"] <= 0.06 + slack, found
    assert found["two-level"] < found["interval"] / 2, found  # it counts the noise of the samples twice
    assert found["unpaired"] < 0.01, found  # the problems' noise, in both models alike, hides everything


def test_pairs_see_what_two_intervals_beside_each_other_do_not():
    found = alarms(60, trials=150, resamples=300, gain=0.2)
    assert found["sign flip"] > 0.9, found
    assert found["interval"] > 0.9, found
    assert found["unpaired"] < 0.1, found


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("problems", [30, 200])
def test_many_more_trials(problems):
    trials = 4000
    covered, told = coverage(problems, trials, resamples=2000), alarms(problems, trials, resamples=2000)
    print(problems, covered, told)
    slack = 3 * (0.05 / trials) ** 0.5
    assert 0.94 - slack <= covered["interval"] <= 0.97
    assert 0.925 <= covered["two-level"] <= 0.975
    assert covered["naive"] < 0.6
    assert 0.02 <= told["sign flip"] <= 0.05 + slack
    assert told["interval"] <= 0.05 + slack
    assert told["two-level"] <= 0.03
