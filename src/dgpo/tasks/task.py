"""The protocol of a task, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dgpo.grading import Completion, FunctionGrader
from dgpo.tasks.prompt import PromptFormat

if TYPE_CHECKING:
    from datasets import Dataset

Problem = dict[str, Any]
"""`id`, `prompt` (a text, or the messages of a chat) and `answer`; tasks may add further keys."""

Grade = Callable[[Completion, str], float]
"""(completion, answer) -> 1.0 or 0.0, by a pure function that never runs what the model wrote."""

Extract = Callable[[Completion], str | None]


class Task(Protocol):
    """Something to train or evaluate on: problems by split, and how their answers are graded."""

    @property
    def name(self) -> str:
        """Its name for `dgpo.tasks.make`, with its options."""

    @property
    def kind(self) -> str:
        """`procedural`, `benchmark` or `reasoning_gym`."""

    @property
    def summary(self) -> str:
        """One line for the listing."""

    @property
    def max_new_tokens(self) -> int:
        """Default token budget of a completion."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""

    @property
    def prompt(self) -> PromptFormat:
        """Format of the prompts."""

    @property
    def grade(self) -> Grade | None:
        """The task's own grader; None: answers are mathematics, for `dgpo.rewards.MathGrader`."""

    @property
    def extract(self) -> Extract | None:
        """The answer in a completion as `grade` finds it, or None if there is none. None if `grade` is None."""

    @property
    def reward(self) -> Callable[..., list[float]] | None:
        """`grade` as a TRL reward function; None if the reward comes from `dgpo.rewards`."""

    def problems(self, split: Any) -> list[Problem]:
        """The problems of one split, always in the same order. Raises ValueError for an unknown split."""

    def dataset(self, split: Any) -> Dataset:
        """The same as a `datasets.Dataset` with the columns `prompt` and `answer`, for trainers."""

    def provenance(self, split: Any) -> dict[str, Any]:
        """Where the problems of one split come from, JSON-ready: `source`, `rows`, `sha256` and the task's own keys."""


def grader_of(task: Task) -> FunctionGrader | None:
    """The task's own grader; None if `dgpo.rewards.MathGrader` grades it."""
    return None if task.grade is None else FunctionGrader(task.grade, f"{task.name} (exact)", task.extract)


def check_split(task: str, split: str, splits: Sequence[str]) -> None:
    """Raise ValueError if the task has no such split."""
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of task {task!r}; known: {', '.join(splits)}")


def dataset_of(problems: list[Problem]) -> Dataset:
    """The columns `prompt` and `answer` of the problems as a data set."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": problem["prompt"], "answer": problem["answer"]} for problem in problems])
