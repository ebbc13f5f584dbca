"""A reward function with verl's signature that uses the graders of this package. It does not import verl."""

from __future__ import annotations

from inspect import signature
from numbers import Real
from typing import Any

from dgpo.grading import Completion, Grader, MathGrader
from dgpo.registry import did_you_mean
from dgpo.tasks import BENCHMARKS, TASKS, make
from dgpo.tasks.gym import PREFIX as GYM
from dgpo.tasks.task import grader_of

_FROM_VERL = ("reward_router_address", "reward_model_tokenizer")
"""verl passes these to every reward function when it runs a reward model."""

_OPTIONS = tuple(signature(MathGrader).parameters)

_MARKERS = {"openai/gsm8k": "####"}
"""Data sources whose prompts, as written by verl's scripts, ask for the answer after a marker instead of in a box."""

_GRADERS: dict[tuple[Any, ...], Grader] = {}


def compute_score(
    data_source: str,
    solution_str: Completion,
    ground_truth: str | Real | float,
    extra_info: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, float]:
    """The reward of one response, with verl's signature: `reward.custom_reward_function.path=pkg://dgpo.engines.verl`.

    All calls in a process share one grader, whose workers start with the first answer that needs one and end with the
    process. Several threads may call it at once, as verl's executor does.

    Args:
        data_source: for the name of a task of `dgpo.tasks` with its own grader, that grader is used; everything else is
            graded by `MathGrader`. `openai/gsm8k` has the default `answer_marker` "####".
        solution_str: the response: text, a message, or messages.
        ground_truth: the gold; see `MathGrader.grade_many`.
        extra_info: of the row; ignored.
        options: of `MathGrader` (`+reward.custom_reward_function.reward_kwargs.deadline=3`). All except
            `answer_marker` configure its worker processes and have no effect on a task with its own grader. What verl
            passes for its reward models is ignored.

    Returns:
        `score` and `acc`, 1.0 or 0.0, and one flag, 1.0 or 0.0, for each reason: `no_answer`, `unparsed`, `guarded`,
        `timeout` (not compared within the deadline; the score is 0) and `bad_gold` (the gold cannot be used; the score
        of every response is 0, so that its group has no advantage). The keys are always the same.

    Raises:
        TypeError: a gold is neither text nor a number, a response neither text nor messages, or an option neither text
            nor a number.
        ValueError: an unknown option, or one out of range; `answer_marker` for a task with its own grader; an unknown
            reasoning-gym task.
    """
    given = {name: value for name, value in options.items() if name not in _FROM_VERL}
    for name, value in given.items():
        if name not in _OPTIONS:
            nearest = did_you_mean(name, _OPTIONS)
            raise ValueError(f"compute_score has no option {name!r}{nearest}; its options: {', '.join(_OPTIONS)}")
        if not isinstance(value, str | Real | None):
            raise TypeError(
                f"compute_score: option {name} = {value!r} is of type {type(value).__name__}; expected text or a number"
            )
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | Real):
        raise TypeError(
            f"the gold of a row of {data_source!r} is of type {type(ground_truth).__name__}: {ground_truth!r:.80}; "
            "expected text or a number"
        )
    verdict = _grader(str(data_source), given).grade_many([solution_str], [str(ground_truth)])[0]
    # None where the gold cannot be used
    score = verdict.score or 0.0
    flags = ("no_answer", "unparsed", "guarded", "timeout", "bad_gold")
    return {"score": score, "acc": score} | {flag: float(verdict.reason == flag) for flag in flags}


def _grader(data_source: str, options: dict[str, Any]) -> Grader:
    own = data_source in TASKS or data_source in BENCHMARKS or data_source.startswith(GYM)
    grader = grader_of(make(data_source)) if own else None
    if grader is not None:
        if options.get("answer_marker") is not None:
            raise ValueError(
                f"compute_score: answer_marker = {options['answer_marker']!r} has no effect on {data_source!r}, a task "
                "with its own grader; it applies to mathematics only"
            )
        return grader
    if data_source in _MARKERS:
        options = {"answer_marker": _MARKERS[data_source]} | options
    key = tuple(sorted(options.items()))
    # setdefault is atomic, and a grader starts nothing before it is used: no lock that a fork could inherit
    return _GRADERS.get(key) or _GRADERS.setdefault(key, MathGrader(**options))
