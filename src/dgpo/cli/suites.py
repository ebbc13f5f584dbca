"""The problems of `dgpo eval` with their graders: benchmarks, a task, or a data set."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgpo import tasks
from dgpo.cli.eval_arguments import EvalArguments
from dgpo.evaluation import Suite
from dgpo.grading import FunctionGrader, Grader, MathGrader, answer_of, exact_match
from dgpo.redaction import redacted
from dgpo.tasks.content import content_hash
from dgpo.tasks.prompt import describe_all
from dgpo.tasks.task import grader_of


@dataclass(frozen=True)
class Problems:
    """The problems of an evaluation: suites, their common name, token budget, and the prompt format to record."""

    name: str
    suites: list[Suite]
    max_new_tokens: int
    prompt: dict[str, Any]


def load_problems(args: EvalArguments, tokenizer: Any, stack: ExitStack) -> Problems:
    """The problems named by the flags.

    Args:
        args: checked.
        tokenizer: of the model; None for a server and for existing completions.
        stack: closes the workers of the grader.

    Raises:
        ValueError: an unknown task, flags that do not apply to it, or unusable data.
        OSError: missing data.
    """
    if args.dataset is not None:
        return _data_set(args, stack)
    form = args.prompt_format(tokenizer)
    given = {"prompt": form, "data_dir": args.data_dir, "exclude_known_wrong": args.exclude_known_wrong or None}
    found = [
        tasks.make(name, **{option: value for option, value in given.items() if option in tasks.options(name)})
        for name in args.names()
    ]
    math = _math(stack) if any(task.grade is None for task in found) else None
    suites = []
    for task in found:
        grader = grader_of(task) or math
        assert grader is not None
        problems = task.problems("test")[: args.limit]
        counted = {problem["id"] for problem in problems}
        everything = tasks.make(task.name, data_dir=args.data_dir) if args.exclude_known_wrong else task
        # saved completions of problems that are left out are passed over, and not taken for unknown ones
        left_out = [problem for problem in everything.problems("test") if problem["id"] not in counted]
        suites.append(Suite(task.name, problems, grader, task.provenance("test"), left_out))
    budget = max(task.max_new_tokens for task in found)
    prompt = describe_all([task.prompt for task in found], tokenizer)
    return Problems("-".join(_file_name(task.name) for task in found), suites, budget, prompt)


def _data_set(args: EvalArguments, stack: ExitStack) -> Problems:
    assert args.dataset is not None
    name = Path(args.dataset).stem
    problems = args.load_dataset("test").to_list()[: args.limit]
    grader: Grader = _math(stack) if args.grader == "math" else FunctionGrader(exact_match, "exact_match", answer_of)
    prompt = {"name": "custom" if args.prompt_template else "plain", "template": args.prompt_template or "{prompt}"}
    # of the original problems: the prompt format is recorded separately
    bare = replace(args, prompt_template=None, chat=False).load_dataset("test")
    digest = content_hash((json.dumps(row["prompt"]), row["answer"]) for row in bare)
    source = {
        "source": redacted(args.dataset),
        "config": args.dataset_config,
        "split": args.dataset_split,
        "sha256": digest,
    }
    return Problems(name, [Suite(name, problems, grader, source)], 512, {**prompt, "chat": args.chat})


def _math(stack: ExitStack) -> Grader:
    return stack.enter_context(MathGrader())


def _file_name(name: str) -> str:
    """A name such as `reasoning_gym:gcd,size=3` as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_.=," else "_" for letter in name)
