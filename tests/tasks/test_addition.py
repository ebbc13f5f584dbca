"""Two-digit addition: the splits, the grader, and what TRL gets."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo import tasks
from dgpo.tasks import TASKS, Addition
from dgpo.tasks.procedural import text_grade, text_reward

RECORDED = {"test": ["97+70=", "36+31=", "70+59="], "train": ["25+99=", "90+79=", "95+48="]}
SIZES = {"train": 9000, "validation": 500, "test": 500}


def prompts(task: Addition, split: str) -> list[str]:
    return [problem["prompt"] for problem in task.problems(split)]


@pytest.mark.parametrize("seed", [0, 1, 123])
def test_splits_are_disjoint_and_hold_every_sum_once(seed: int) -> None:
    task = Addition(seed=seed)
    parts = {split: prompts(task, split) for split in SIZES}
    assert {split: len(part) for split, part in parts.items()} == SIZES
    together = [prompt for part in parts.values() for prompt in part]
    assert len(together) == len(set(together)) == 10_000
    assert set(together) == {f"{a}+{b}=" for a in range(100) for b in range(100)}


def test_answers_are_right_and_graded_so() -> None:
    task = Addition()
    for split in SIZES:
        for problem in task.problems(split):
            assert problem.keys() == {"id", "prompt", "answer"}
            assert problem["id"] + "=" == problem["prompt"]
            a, b = problem["prompt"].removesuffix("=").split("+")
            assert problem["answer"] == str(int(a) + int(b))
            assert task.grade(problem["answer"], problem["answer"]) == 1.0


def test_the_seed_decides_and_nothing_else() -> None:
    """The split of the documented results cannot move under them: recorded problems."""
    assert Addition(seed=3).problems("test") == Addition(seed=3).problems("test")
    assert prompts(Addition(seed=3), "test") != prompts(Addition(seed=4), "test")
    assert prompts(Addition(), "test") == prompts(tasks.make("addition"), "test")
    assert prompts(Addition(), "test")[:3] == RECORDED["test"]
    assert prompts(Addition(), "train")[:3] == RECORDED["train"]


def test_the_budget_holds_every_answer_and_the_end_token() -> None:
    assert max(len(problem["answer"]) for problem in Addition().problems("train")) + 1 < Addition.max_new_tokens


@pytest.mark.parametrize(
    ("completion", "answer", "grade"),
    [
        ("46", "46", 1.0),
        (" 46\n", "46", 1.0),
        ("46.", "46", 0.0),
        ("046", "46", 0.0),
        ("4 6", "46", 0.0),
        ("146", "46", 0.0),
        ("the answer is 46", "46", 0.0),
        ("46.0", "46", 0.0),
        ("", "46", 0.0),
        ("0", "0", 1.0),
        ("", "", 1.0),
    ],
)
def test_grade_is_exact(completion: str, answer: str, grade: float) -> None:
    assert text_grade(completion, answer) == grade
    assert isinstance(text_grade(completion, answer), float)


@given(st.text(max_size=12), st.integers(0, 198))
def test_grade_is_1_only_for_the_answer_itself(completion: str, answer: int) -> None:
    assert text_grade(completion, str(answer)) == float(completion.strip() == str(answer))


def test_the_reward_has_the_signature_of_trl() -> None:
    """Columns and what TRL adds come as keywords; one float per completion."""
    rewards = text_reward(
        prompts=["1+1=", "2+2="],
        completions=["2", "5"],
        answer=["2", "4"],
        completion_ids=[[1], [2]],
        trainer_state=None,
        log_extra=None,
    )
    assert rewards == [1.0, 0.0]
    assert Addition().reward(completions=["2"], answer=["2"]) == [1.0]
    with pytest.raises(ValueError, match="shorter"):
        text_reward(completions=["1", "2"], answer=["1"])


def test_the_data_set_has_the_columns_and_rows_of_the_split() -> None:
    data = Addition().dataset("validation")
    assert data.column_names == ["prompt", "answer"]
    assert data.to_list() == [
        {"prompt": problem["prompt"], "answer": problem["answer"]} for problem in Addition().problems("validation")
    ]


def test_unknown_split_and_task() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev' of task 'addition'; known: train, validation, test"):
        Addition().problems("dev")
    with pytest.raises(ValueError, match="unknown task 'adition', did you mean 'addition'"):
        tasks.make("adition")


def test_tasks_are_frozen_and_named_as_they_are_registered() -> None:
    for name, cls in TASKS.items():
        task = tasks.make(name, seed=5)
        assert (cls.name, task.seed) == (name, 5)
        with pytest.raises(dataclasses.FrozenInstanceError):
            task.seed = 6  # type: ignore[misc]
        with pytest.raises(TypeError):
            cls(1)  # type: ignore[misc]
