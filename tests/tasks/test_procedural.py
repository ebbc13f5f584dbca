"""Every procedural task: splits by problem, determinism, answers, budgets, and prompts that the starter can read."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo import tasks
from dgpo.tasks import TASKS, Gcd, PlusMinus, Procedural, Reverse
from dgpo.tasks.procedural import HELD_OUT, SPLITS

CHARACTERS = set(string.digits + string.ascii_letters + string.punctuation + " \n")


def identity(prompt: str) -> object:
    """What makes two prompts one problem: the numbers in any order, a word or its reverse."""
    word = re.fullmatch(r"reverse\((\w+)\)=", prompt)
    if word is not None:
        return min(word[1], word[1][::-1])
    return tuple(sorted(re.findall(r"\d+", prompt)))


def solve(prompt: str) -> str:
    if match := re.fullmatch(r"reverse\((\w+)\)=", prompt):
        return match[1][::-1]
    if match := re.fullmatch(r"gcd\((\d+),(\d+)\)=", prompt):
        return str(math.gcd(int(match[1]), int(match[2])))
    match = re.fullmatch(r"(\d+)([+-])(\d+)=", prompt)
    assert match is not None, prompt
    return str(int(match[1]) + int(match[3]) * (1 if match[2] == "+" else -1))


@pytest.mark.parametrize("cls", [Reverse, PlusMinus, Gcd])
@settings(max_examples=5)
@given(seed=st.integers(-(2**40), 2**40))
def test_no_problem_is_in_two_splits_in_any_spelling(cls: type[Procedural], seed: int) -> None:
    task = cls(seed=seed)
    known = {split: {identity(problem["prompt"]) for problem in task.problems(split)} for split in SPLITS}
    assert not known["train"] & known["test"]
    assert not known["train"] & known["validation"]
    assert not known["validation"] & known["test"]
    assert len(known["test"]) == len(known["validation"]) == HELD_OUT


@pytest.mark.parametrize("cls", TASKS.values())
def test_every_problem_is_right_readable_and_within_the_budget(cls: type[Procedural]) -> None:
    task = cls()
    assert task.splits == SPLITS
    for split in SPLITS:
        problems = task.problems(split)
        assert len({problem["id"] for problem in problems}) == len(problems)
        for problem in problems:
            assert problem.keys() == {"id", "prompt", "answer"}
            assert problem["answer"] == solve(problem["prompt"])
            assert set(problem["prompt"] + problem["answer"]) <= CHARACTERS
            assert len(problem["prompt"]) <= 16
            assert len(problem["answer"]) + 1 < task.max_new_tokens
    assert max(len(p["answer"]) for p in task.problems("train")) == task.max_new_tokens - 2


@pytest.mark.parametrize("cls", TASKS.values())
def test_the_seed_decides_and_nothing_else(cls: type[Procedural]) -> None:
    for split in SPLITS:
        assert cls(seed=3).problems(split) == cls(seed=3).problems(split)
        assert cls(seed=3).problems(split) != cls(seed=4).problems(split)
    assert cls().problems("test") == tasks.make(cls.name).problems("test")


@pytest.mark.parametrize(
    ("cls", "first", "rows"),
    [
        (Reverse, "reverse(pmjgjq)=", 7956),
        (PlusMinus, "1-50=", 16028),
        (Gcd, "gcd(111,30)=", 7252),
    ],
)
def test_recorded_problems(cls: type[Procedural], first: str, rows: int) -> None:
    """The splits of documented results cannot move under them."""
    assert cls().problems("test")[0]["prompt"] == first
    assert len(cls().problems("train")) == rows


@pytest.mark.parametrize("cls", TASKS.values())
def test_no_constant_answer_does_well(cls: type[Procedural]) -> None:
    """Otherwise a model that learnt nothing would pass for a starter at 45 %."""
    answers = Counter(problem["answer"] for problem in cls().problems("validation"))
    assert answers.most_common(1)[0][1] / HELD_OUT < 0.33


@pytest.mark.parametrize("cls", [Reverse, Gcd])
def test_held_out_spellings_are_drawn_both_ways(cls: type[Procedural]) -> None:
    def ordered(prompt: str) -> bool:
        word = re.fullmatch(r"reverse\((\w+)\)=", prompt)
        first, second = (word[1], word[1][::-1]) if word else map(int, re.findall(r"\d+", prompt))
        return bool(first < second)  # type: ignore[operator]

    share = sum(ordered(problem["prompt"]) for problem in cls().problems("test")) / HELD_OUT
    assert 0.4 < share < 0.6


def test_words_of_every_length() -> None:
    lengths = Counter(len(problem["answer"]) for problem in Reverse().problems("test"))
    assert set(lengths) == {3, 4, 5, 6}
    assert min(lengths.values()) > 80


@pytest.mark.parametrize(
    ("completion", "answer", "grade"),
    [("cba", "cba", 1.0), (" cba\n", "cba", 1.0), ("cb a", "cba", 0.0), ("CBA", "cba", 0.0), ("", "cba", 0.0)],
)
@pytest.mark.parametrize("cls", TASKS.values())
def test_grades_and_rewards(cls: type[Procedural], completion: str, answer: str, grade: float) -> None:
    assert cls.grade(completion, answer) == cls().grade(completion, answer) == grade
    assert cls().reward([completion, answer], answer=[answer, answer], prompts=None) == [grade, 1.0]


@pytest.mark.parametrize("cls", TASKS.values())
def test_provenance_says_what_was_made(cls: type[Procedural]) -> None:
    test, validation = cls().provenance("test"), cls().provenance("validation")
    assert (test["rows"], test["seed"], test["split"]) == (HELD_OUT, 0, "test")
    assert re.fullmatch(r"[0-9a-f]{64}", test["sha256"])
    assert test["sha256"] != validation["sha256"]
    assert test == cls().provenance("test") != cls(seed=1).provenance("test")


@pytest.mark.parametrize("cls", TASKS.values())
def test_data_sets_have_the_columns_of_a_trainer(cls: type[Procedural]) -> None:
    data = cls().dataset("test")
    assert data.column_names == ["prompt", "answer"]
    assert data["prompt"][:] == [problem["prompt"] for problem in cls().problems("test")]


@pytest.mark.parametrize("call", [Procedural.problems, Procedural.dataset, Procedural.provenance])
def test_unknown_splits_and_seeds(call: Callable[[Procedural, str], object]) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev' of task 'gcd'; known: train, validation, test"):
        call(Gcd(), "dev")
    with pytest.raises(ValueError, match="Gcd: seed = '0' is not allowed; expected an integer"):
        Gcd(seed="0")  # type: ignore[arg-type]
