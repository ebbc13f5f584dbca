from itertools import combinations, pairwise

import numpy as np
import pytest

from dgpo.evaluation import Estimate, avg_at_k, interval, pass_at_k, summarise

CASES = [(n, c) for n in range(1, 7) for c in range(n + 1)]


@pytest.mark.parametrize(("n", "c"), CASES)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n, c):
    samples = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


@pytest.mark.parametrize(("n", "c"), [*CASES, (1000, 3), (1000, 997)])
def test_pass_at_k_grows_with_k_from_the_average_to_any(n, c):
    curve = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert curve[0] == pytest.approx(c / n, abs=1e-14)
    assert curve[-1] == float(c > 0)
    assert all(earlier <= later for earlier, later in pairwise(curve))


def test_pass_at_k_is_unbiased():
    rng = np.random.default_rng(0)
    successes = rng.binomial(10, 0.2, size=20_000)
    assert np.mean([pass_at_k(10, int(c), 4) for c in successes]) == pytest.approx(1 - 0.8**4, abs=0.005)


def test_pass_at_k_is_not_the_quantity_with_replacement():
    assert pass_at_k(32, 1, 32) == 1.0
    best_at_32 = 1 - (1 - 1 / 32) ** 32
    assert best_at_32 == pytest.approx(0.638, abs=1e-3)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


def test_avg_at_k():
    assert avg_at_k([[1, 0], [1, 1], [0, 0]]) == 0.5
    assert avg_at_k(np.array([[True], [False]])) == 0.5


@pytest.mark.parametrize("correct", [[1, 0], [[]], [], [[0.5]], [[float("nan")]], [[2]]])
def test_avg_at_k_refuses(correct):
    with pytest.raises(ValueError, match="correct"):
        avg_at_k(correct)


def test_interval_is_deterministic_and_moves_with_the_seed():
    values = np.random.default_rng(1).random(30)
    first = interval(values, resamples=1000)
    assert first == interval(values, resamples=1000)
    assert first != interval(values, resamples=1000, seed=1)
    assert first.value == pytest.approx(values.mean())
    assert first.low < first.value < first.high


def test_interval_does_not_depend_on_how_the_resamples_are_batched(monkeypatch):
    values = np.random.default_rng(1).random(30)
    whole = interval(values, resamples=1000)
    monkeypatch.setattr("dgpo.evaluation.estimates.RESAMPLED_VALUES", 30 * 7)
    assert interval(values, resamples=1000) == whole


def test_interval_widens_with_confidence_and_stays_within_the_data():
    values = [0.0] * 2 + [1.0] * 28  # 1.96 standard errors would end above 1
    widths = [interval(values, confidence=level, resamples=2000) for level in (0.5, 0.9, 0.99)]
    assert all(0 <= found.low <= found.value <= found.high <= 1 for found in widths)
    assert widths[0].low >= widths[1].low >= widths[2].low


@pytest.mark.parametrize("values", [[0.25], [1.0] * 5, [0.1] * 3])
def test_interval_without_spread_has_no_width(values):
    assert interval(values) == Estimate(values[0], values[0], values[0])


def test_interval_covers_the_truth_as_often_as_it_says():
    """Problems of chance p ~ Beta(1/2, 1/2), 8 samples each: the truth, 1/2, is about problems that were not drawn."""
    rng = np.random.default_rng(0)
    trials, problems, n = 400, 60, 8
    covered = 0
    for trial in range(trials):
        per_problem = rng.binomial(n, rng.beta(0.5, 0.5, size=problems)) / n
        found = interval(per_problem, resamples=500, seed=trial)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / trials <= 0.98


@pytest.mark.parametrize(
    ("values", "options"),
    [([], {}), ([[1.0]], {}), ([0.0, float("nan")], {}), ([0.0, 1.0], {"confidence": 1.0})],
)
def test_interval_refuses(values, options):
    with pytest.raises(ValueError, match=r"expected"):
        interval(values, **options)


def test_summarise_names_and_values():
    correct = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    found = summarise(correct, [1, 0, 1, 0])
    assert list(found) == ["greedy", "avg@6", "pass@1", "pass@2", "pass@4", "pass@6"]
    assert found["greedy"].value == 0.5
    assert found["avg@6"].value == avg_at_k(correct)
    assert found["pass@1"].value == pytest.approx(found["avg@6"].value)
    assert found["pass@2"].value == pytest.approx(np.mean([1 - (4 * 3) / (6 * 5), 0, 1, 1 / 3]))
    assert found["pass@6"].value == 0.75
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.values())


def test_summarise_chosen_ks_no_greedy_and_greedy_alone():
    assert list(summarise([[1, 0, 1]], ks=[3, 1])) == ["avg@3", "pass@1", "pass@3"]
    assert list(summarise([[1]])) == ["avg@1", "pass@1"]
    assert list(summarise(np.zeros((3, 0)), [True, False, True])) == ["greedy"]


@pytest.mark.parametrize(
    ("correct", "greedy", "ks"),
    [([[1, 0]], [1, 0], None), ([[1, 0]], [[1]], None), ([[1, 0]], None, [3]), (np.zeros((2, 0)), None, None)],
)
def test_summarise_refuses(correct, greedy, ks):
    with pytest.raises(ValueError, match="expected"):
        summarise(correct, greedy, ks)
