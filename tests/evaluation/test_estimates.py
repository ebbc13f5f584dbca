import math
from collections import Counter
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.evaluation.estimates import (
    avg_at_k,
    best_at_k,
    interval,
    interval_two_level,
    maj_at_k,
    pass_at_k,
    summarise,
)

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


@pytest.mark.parametrize(("n", "c"), [(n, c) for n, c in CASES if n <= 5])
def test_best_at_k_is_the_share_of_draws_with_replacement_that_hold_a_correct_sample(n, c):
    samples = [True] * c + [False] * (n - c)
    for k in range(1, 6):
        draws = list(product(samples, repeat=k))
        assert best_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-14)


@pytest.mark.parametrize("c", [1, 2, 3, 20])
def test_best_at_k_is_what_repeated_draws_average_to(c):
    """As verl computes it, with more draws than its 1,000."""
    rng = np.random.default_rng(c)
    samples = np.arange(32) < c
    drawn = samples[rng.integers(0, 32, (40_000, 32))].any(axis=1)
    assert best_at_k(32, c, 32) == pytest.approx(drawn.mean(), abs=0.01)


def test_pass_at_k_and_best_at_k_are_different_quantities():
    assert [pass_at_k(32, c, 32) for c in (1, 2, 3)] == [1.0] * 3
    assert [round(best_at_k(32, c, 32), 3) for c in (1, 2, 3)] == [0.638, 0.873, 0.957]


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_bounds_and_order_of_pass_and_best(counts):
    n, c = counts
    curves = [[function(n, c, k) for k in range(1, n + 1)] for function in (pass_at_k, best_at_k)]
    for curve in curves:
        assert all(0 <= value <= 1 for value in curve)
        assert curve[0] == pytest.approx(c / n, abs=1e-14)
        assert all(earlier <= later + 1e-14 for earlier, later in pairwise(curve))
    assert all(best <= passed + 1e-14 for passed, best in zip(*curves, strict=True))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_best_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match="expected"):
        best_at_k(n, c, k)


def test_best_at_k_may_draw_more_often_than_there_are_samples():
    assert best_at_k(2, 1, 3) == 1 - 0.5**3


ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7)


@given(ANSWERS, st.sampled_from(["a", "b", "c"]))
def test_maj_at_k_is_the_expected_grade_under_a_random_tie_break(answers, gold):
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    expected = sum(answer == gold for answer in winners) / len(winners) if winners else 0.0
    assert maj_at_k(answers, [answer == gold for answer in answers]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "correct", "value"),
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["8", "7", "8"], [0, 1, 0], 0.0),
        (["7", "8"], [1, 0], 0.5),
        (["7", "8", "9"], [0, 0, 1], 1 / 3),
        ([None, None, "7"], [0, 0, 1], 1.0),  # no answer is no vote
        ([None, None], [0, 0], 0.0),
        (["7", "7"], [1, 0], 1.0),  # one of the two was graded too late
        # right ones are one answer, however they are written
        (["1/2", "0.5", r"\frac12", "3", "3"], [1, 1, 1, 0, 0], 1.0),
        (["x+1", "1+x", "3", "3", "3"], [1, 1, 0, 0, 0], 0.0),
        # and so are wrong ones that are one number, or one text in normal spelling
        (["1/2", "0.5", r"\frac12", "3", "3"], [0, 0, 0, 1, 1], 0.0),
        (["1,000", "1000", "3", "3", "3"], [0, 0, 1, 1, 1], 1.0),
        (["x + 1", "x+1", "7"], [0, 0, 1], 0.0),
        (["1/2", "0.5", "3", "3"], [1, 1, 0, 0], 0.5),
        (["3", "3.0", "3.0"], [1, 0, 0], 0.0),  # a grader that tells them apart
    ],
)
def test_maj_at_k(answers, correct, value):
    assert maj_at_k(answers, correct) == pytest.approx(value)


@pytest.mark.parametrize(("answers", "correct"), [(["7"], [1, 0]), ([], []), (["7"], [0.5])])
def test_maj_at_k_refuses(answers, correct):
    with pytest.raises(ValueError, match="expected"):
        maj_at_k(answers, correct)


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


def test_two_levels_have_the_same_value_and_a_wider_interval():
    rng = np.random.default_rng(5)
    successes = rng.binomial(4, 0.5, 3000)  # problems alike: all the noise is that of the samples, counted twice
    one, two = interval(successes / 4), interval_two_level(successes, 4)
    assert (two.value, two.se) == (pytest.approx(one.value), pytest.approx(one.se))
    assert (two.high - two.low) / (one.high - one.low) == pytest.approx(math.sqrt(2), rel=0.07)
    few = successes[:100]
    assert interval_two_level(few, 4) == interval_two_level(few, np.full(100, 4)) != interval_two_level(few, 4, seed=1)


def test_two_levels_agree_with_drawing_problems_and_samples_one_by_one():
    rng = np.random.default_rng(6)
    correct = rng.random((20, 5)) < rng.random((20, 1))
    means = []
    for _ in range(4000):
        problems = correct[rng.integers(0, 20, 20)]
        means.append(np.mean([row[rng.integers(0, 5, 5)].mean() for row in problems]))
    found = interval_two_level(correct.sum(axis=1), 5)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.015)


def test_two_levels_of_a_difference_draw_the_same_problems_for_both():
    """Equal certainties leave nothing to differ, however far the problems are apart."""
    sure = np.array([0, 8] * 20)
    found = interval_two_level(sure, 8, baseline=(sure // 2, 4))
    assert (found.value, found.low, found.high, found.se) == (0, 0, 0, 0)
    shifted = interval_two_level(np.full(40, 6), 8, baseline=(np.full(40, 2), 4))
    assert shifted.value == 0.25
    assert shifted.low < 0.25 < shifted.high


def test_two_levels_do_not_depend_on_how_many_resamples_are_held_at_once(monkeypatch):
    """Batches order the random numbers differently, so not to the bit; none is lost or drawn twice as often."""
    successes = np.random.default_rng(1).binomial(8, 0.4, 30)
    whole = interval_two_level(successes, 8)
    monkeypatch.setattr("dgpo.evaluation.estimates.RESAMPLED_VALUES", 30 * 999)
    parts = interval_two_level(successes, 8)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


@pytest.mark.parametrize(
    ("successes", "samples", "options"),
    [
        ([], 8, {}),
        ([[1]], 8, {}),
        ([9], 8, {}),
        ([-1], 8, {}),
        ([0], 0, {}),
        ([0.5], 1, {}),
        ([1, 2], [8], {}),
        ([1, 2], 8, {"confidence": 0}),
        ([1, 2], 8, {"baseline": ([1], 8)}),
    ],
)
def test_two_levels_refuse(successes, samples, options):
    with pytest.raises(ValueError, match="expected"):
        interval_two_level(successes, samples, **options)


def test_summarise_names_and_values():
    correct = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    found = summarise(correct, [1, 0, 1, 0])
    assert list(found) == ["greedy", "avg@6", "pass@1", "pass@2", "pass@4", "pass@6", "best@6"]
    assert found["greedy"].value == 0.5
    assert found["avg@6"].value == avg_at_k(correct)
    assert found["pass@1"].value == pytest.approx(found["avg@6"].value)
    assert found["pass@2"].value == pytest.approx(np.mean([1 - (4 * 3) / (6 * 5), 0, 1, 1 / 3]))
    assert found["pass@6"].value == 0.75
    assert found["best@6"].value == pytest.approx(np.mean([1 - (4 / 6) ** 6, 0, 1, 1 - (5 / 6) ** 6]))
    assert found["avg@6"].se == pytest.approx(np.std(correct.mean(axis=1), ddof=1) / 2)
    assert found["greedy"].se == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.values())


def test_summarise_chosen_ks_no_greedy_and_greedy_alone():
    assert list(summarise([[1, 0, 1]], ks=[3, 1])) == ["avg@3", "pass@1", "pass@3", "best@3"]
    assert list(summarise([[1]])) == ["avg@1", "pass@1", "best@1"]
    assert list(summarise(np.zeros((3, 0)), [True, False, True])) == ["greedy"]


def test_summarise_with_answers():
    correct = [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    found = summarise(correct, [1, 1, 0], ks=[1], answers=[["2", "2", "3"], ["2", "3", "3"], [None, None, None]])
    assert list(found) == ["greedy", "avg@3", "pass@1", "best@3", "maj@3"]
    assert found["maj@3"].value == pytest.approx(1 / 3)
    assert found["maj@3"].se == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))


def test_summarise_keeps_the_order_of_the_quantities():
    rng = np.random.default_rng(4)
    found = {name: one.value for name, one in summarise(rng.random((40, 8)) < rng.random((40, 1)) ** 3).items()}
    assert found["avg@8"] == pytest.approx(found["pass@1"])
    assert found["pass@1"] < found["pass@2"] < found["pass@4"] < found["pass@8"]
    assert found["pass@1"] < found["best@8"] < found["pass@8"]


@pytest.mark.parametrize("answers", [[["7"]], [["7", "7"], ["7", "7"]], []])
def test_summarise_refuses_answers_of_another_shape(answers):
    with pytest.raises(ValueError, match="answers"):
        summarise([[1, 0]], answers=answers)


@pytest.mark.parametrize(
    ("correct", "greedy", "ks"),
    [([[1, 0]], [1, 0], None), ([[1, 0]], [[1]], None), ([[1, 0]], None, [3]), (np.zeros((2, 0)), None, None)],
)
def test_summarise_refuses(correct, greedy, ks):
    with pytest.raises(ValueError, match="expected"):
        summarise(correct, greedy, ks)
