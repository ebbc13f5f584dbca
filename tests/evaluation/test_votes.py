"""Which answers vote together."""

from __future__ import annotations

import pytest

from dgpo.evaluation.votes import COMPARED, majority, same_by
from dgpo.rewards import FunctionGrader, MathGrader, exact_match

ROOT, SAME_ROOT = r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt2}"


@pytest.fixture(scope="module")
def same():
    with MathGrader(deadline=10.0) as grader:
        yield same_by(grader)


def test_three_right_spellings_are_one_vote_class():
    assert majority([ROOT, SAME_ROOT, r"2^{-1/2}", "3", "3"], [1, 1, 1, 0, 0]) == 1.0


def test_wrong_answers_that_the_grader_calls_equal_vote_together(same):
    answers, grades = [ROOT, SAME_ROOT, r"2^{-1/2}", "3", "3"], [0, 0, 0, 1, 1]
    assert majority(answers, grades) == 1.0
    assert majority(answers, grades, same) == 0.0
    assert majority([ROOT, SAME_ROOT, "3", "3"], [0, 0, 1, 1], same) == 0.5


def test_they_are_compared_only_where_it_matters_and_a_few_at_most():
    asked = []

    def same(pairs):
        asked.append(len(pairs))
        return [False] * len(pairs)

    # certain: right ones have more votes than all others; or fewer than one class of them
    assert majority(["7", "7", "7", "a", "b"], [1, 1, 1, 0, 0], same) == 1.0
    assert majority(["7", "a", "a", "b"], [1, 0, 0, 0], same) == 0.0
    assert majority(["a", "b", "c"], [0, 0, 0], same) == 0.0
    assert majority(["7", "7", "a", "a"], [1, 1, 0, 0], same) == 0.5
    assert asked == []
    letters = [f"word{chr(97 + n)}" for n in range(20)]
    assert majority(["7", "7", *letters], [1, 1, *[0] * 20], same) == 1.0
    assert asked == [COMPARED * (COMPARED - 1) // 2]


def test_graders_of_tasks_compare_as_well():
    same = same_by(FunctionGrader(exact_match, "exact"))
    assert same([("1/2", "0.5"), ("1/2", "0.6"), ("cat", "cat")]) == [True, False, True]


@pytest.mark.parametrize("answers", [[None, None], [], ["", " "]])
def test_nobody_votes(answers):
    assert majority(answers, [0] * len(answers)) == 0.0
    assert majority([*answers, "7"], [*[0] * len(answers), 1]) == 1.0
