"""One run: its scores, what is refused, and what a run that broke counts as."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from dgpo.comparison import Outcome


def outcome(**changes: Any) -> Outcome:
    given: dict[str, Any] = {
        "arm": "grpo",
        "seed": 3,
        "task": "addition",
        "steps": (0, 10, 40),
        "scores": (0.2, 0.4, 0.8),
    }
    return Outcome(**{**given, **changes})


def test_scores_of_a_curve() -> None:
    run = outcome()
    assert run.final == 0.8
    # 10 steps at 0.3 on average, then 30 at 0.6
    assert run.area == pytest.approx((10 * 0.3 + 30 * 0.6) / 40)
    assert outcome(scores=(0.5, 0.5, 0.5)).area == pytest.approx(0.5)


def test_numbers_of_numpy_become_plain_ones() -> None:
    curve = np.array([[0, 5], [0.25, 0.5]])
    run = Outcome("grpo", np.int64(2), "addition", tuple(curve[0].astype(int)), tuple(curve[1]), {"a": curve[1, 1]})
    assert json.loads(json.dumps(asdict(run))) == {
        "arm": "grpo",
        "seed": 2,
        "task": "addition",
        "steps": [0, 5],
        "scores": [0.25, 0.5],
        "problems": {"a": 0.5},
        "diverged": None,
    }


def test_a_single_evaluation_is_the_whole_curve() -> None:
    run = outcome(steps=(0,), scores=(0.3,))
    assert (run.final, run.area) == (0.3, 0.3)


def test_a_run_that_broke_counts_as_0_from_there_on() -> None:
    run = outcome(steps=(0, 10), scores=(0.2, 0.4), problems={"a": 0.4}, diverged="non-finite")
    whole = run.until((0, 10, 40))
    assert (whole.steps, whole.scores) == ((0, 10, 40), (0.2, 0.4, 0.0))
    assert whole.problems == {"a": 0.0}
    assert (whole.final, whole.diverged) == (0.0, "non-finite")
    assert whole.area == pytest.approx((10 * 0.3 + 30 * 0.2) / 40)


def test_a_diverged_run_that_reached_the_end_keeps_its_score() -> None:
    run = outcome(diverged="worse than the start")
    assert run.until((0, 10, 40)) is run


def test_a_run_that_was_only_interrupted_has_no_score() -> None:
    with pytest.raises(ValueError, match=r"grpo on addition, seed 3: the last evaluation is at step 10 of 40"):
        outcome(steps=(0, 10), scores=(0.2, 0.4)).until((0, 10, 40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": " "}, "arm = ' '; expected a text that is not empty"),
        ({"task": None}, "task = None; expected a text"),
        ({"diverged": ""}, "diverged = ''; expected a text that is not empty"),
        ({"seed": True}, "seed = True is not allowed; expected an integer"),
        ({"seed": 1.0}, "seed = 1.0 is not allowed; expected an integer"),
        ({"steps": (0, 0.5, 1)}, "step = 0.5 is not allowed; expected an integer"),
        ({"steps": (0, 10)}, "2 steps and 3 scores"),
        ({"steps": (), "scores": ()}, "expected the first to be 0"),
        ({"steps": (1, 10, 40)}, "expected the first to be 0"),
        ({"steps": (0, 10, 10)}, "expected increasing ones"),
        ({"scores": (0.2, 1.2, 0.8)}, r"score at step 10 = 1.2 is not allowed; expected a number in \[0, 1\]"),
        ({"scores": (0.2, 0.4, float("nan"))}, "score at step 40 = nan is not allowed"),
        ({"problems": {"p": -0.1}}, "score of problem 'p' = -0.1 is not allowed"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outcome(**changes)
