"""Tasks to train and evaluate on. Procedural tasks generate their problems; benchmarks come from files or the hub."""

from __future__ import annotations

import dataclasses
from typing import Any

from dgpo.registry import did_you_mean
from dgpo.tasks.arithmetic import Addition, Gcd, PlusMinus
from dgpo.tasks.benchmark_table import BENCHMARKS
from dgpo.tasks.benchmarks import BenchmarkTask
from dgpo.tasks.gym import PREFIX, GymTask, parse_name
from dgpo.tasks.procedural import Procedural
from dgpo.tasks.prompt import BOXED, PLAIN, PROMPTS, PromptFormat
from dgpo.tasks.reverse import Reverse
from dgpo.tasks.task import Problem, Task

TASKS: dict[str, type[Procedural]] = {cls.name: cls for cls in (Addition, Reverse, PlusMinus, Gcd)}
"""The procedural tasks by name."""

__all__ = [
    "BENCHMARKS",
    "BOXED",
    "PLAIN",
    "PROMPTS",
    "TASKS",
    "Addition",
    "BenchmarkTask",
    "Gcd",
    "GymTask",
    "PlusMinus",
    "Problem",
    "Procedural",
    "PromptFormat",
    "Reverse",
    "Task",
    "make",
    "options",
]


def options(name: str) -> tuple[str, ...]:
    """The options that `make` accepts for the task of that name. Raises ValueError for an unknown task."""
    fields = tuple(field.name for field in dataclasses.fields(_kind(name)) if field.name not in _FROM_NAME)
    return (*fields, "chat") if "prompt" in fields else fields


def make(name: str, **given: Any) -> Task:
    """The task of that name.

    Args:
        name: a procedural task, a benchmark, or `reasoning_gym:NAME[,key=value...]` with the task's configuration; the
            keys seed, train_size, validation_size and test_size are those of `GymTask`.
        given: the options of that kind of task (see `options`); None means not given.
            `prompt` is a `PromptFormat` or the name of one; `chat` replaces the format's own.

    Raises:
        ValueError: an unknown name (the error names the nearest known one), an unknown option, or a value out of range.
    """
    cls = _kind(name)
    known = options(name)
    given = {option: value for option, value in given.items() if value is not None}
    for option in given:
        if option not in known:
            raise ValueError(
                f"task {name!r} has no option {option!r}{did_you_mean(option, known)}; its options: {', '.join(known)}"
            )
    if "prompt" in known:
        given["prompt"] = _prompt(given.get("prompt", BOXED), given.pop("chat", None))
    if issubclass(cls, GymTask):
        task, config = parse_name(name)
        # options of `GymTask`; the other keys of the name configure the package's task
        in_name = {key: value for key, value in config if key in known}
        if both := in_name.keys() & given.keys():
            raise ValueError(f"{sorted(both)[0]!r} is given twice: in the name {name!r} and as an option")
        rest = tuple((key, value) for key, value in config if key not in known)
        return GymTask(task=task, config=rest, **in_name, **given)
    if issubclass(cls, BenchmarkTask):
        return BenchmarkTask(name=name, **given)
    return TASKS[name](**given)


_FROM_NAME = ("name", "task", "config")


def _kind(name: str) -> type[Procedural] | type[BenchmarkTask] | type[GymTask]:
    if name in TASKS:
        return TASKS[name]
    if name in BENCHMARKS:
        return BenchmarkTask
    if name.startswith(PREFIX):
        return GymTask
    known = [*TASKS, *BENCHMARKS, f"{PREFIX}NAME"]
    raise ValueError(f"unknown task {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


def _prompt(prompt: PromptFormat | str, chat: bool | None) -> PromptFormat:
    if isinstance(prompt, str):
        if prompt not in PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}; known: {', '.join(PROMPTS)}")
        prompt = PROMPTS[prompt]
    return prompt if chat is None else dataclasses.replace(prompt, chat=chat)
