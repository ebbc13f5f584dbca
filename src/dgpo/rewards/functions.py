"""Reward functions with TRL's signature: `reward(completions, answer=..., **columns) -> list[float | None]`.

Rewards with options are objects with a `__name__`, after which TRL names metrics; TRL pickles rewards into processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal

from dgpo.counts import counted
from dgpo.grading import MathGrader, exact_match
from dgpo.grading.answers import Box, boxes, visible
from dgpo.grading.responses import END_OF_TEXT, Completion, said, texts_of
from dgpo.grading.verdict import REASONS
from dgpo.rewards.shaping import shaping_term

LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]


class MathReward:
    """1.0 for the right mathematical answer in the last box, otherwise 0.0; None if the gold cannot be used.

    TRL excludes a completion whose rewards are all None from its group. Metrics, through TRL's `log_metric`: the
    fraction of every reason of `Verdict` as `math_reward/REASON`, and of truncated completions as
    `math_reward/truncated`. The table of completions gets the columns `extracted` and `reason`.

    Args:
        truncated: "zero" scores completions that were cut off at the token limit 0, with reason `no_answer`; "grade"
            grades them like all others. `DGPOTrainer` tells rewards which completions were truncated; TRL's own trainer
            does not, and then none counts as truncated. To exclude them from the loss, set TRL's
            `mask_truncated_completions`.
        options: of `MathGrader`: workers, deadline, memory, recycle, answer_marker.

    Raises:
        ValueError: an option out of range.
        ImportError: math-verify is not installed.
    """

    __name__: ClassVar[str] = "math_reward"

    def __init__(self, *, truncated: Literal["zero", "grade"] = "zero", **options: Any) -> None:
        if truncated not in ("zero", "grade"):
            raise ValueError(f"truncated = {truncated!r} is not allowed; expected 'zero' or 'grade'")
        self.truncated = truncated
        self.grader = MathGrader(**options)

    def __call__(
        self,
        completions: Sequence[Completion],
        answer: Sequence[object] | None = None,
        *,
        solution: Sequence[object] | None = None,
        truncated: Sequence[bool] | None = None,
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion.

        Args:
            completions: [B] texts, messages or conversations; see `dgpo.grading.text_of`.
            answer: [B] golds; see `MathGrader.grade_many`.
            solution: [B] the same under the name of TRL's data sets; pass one of the two.
            truncated: [B] whether each was cut off.
            log_metric: TRL's.
            log_extra: TRL's.
            columns: the other columns, not read.

        Raises:
            ValueError: neither or both of answer and solution are given, or the lengths differ.
        """
        golds = answer if answer is not None else solution
        if golds is None or (answer is not None and solution is not None):
            raise ValueError("math_reward needs exactly one column of golds, 'answer' or 'solution'")
        verdicts = self.grader.grade_many(texts_of(completions), [_gold(gold) for gold in golds])
        if truncated is not None and self.truncated == "zero":
            verdicts = [
                # a bad gold stays None: that the response was cut off does not make it usable
                replace(verdict, score=0.0, reason="no_answer") if cut and verdict.score is not None else verdict
                for verdict, cut in zip(verdicts, truncated, strict=True)
            ]
        if log_metric is not None and verdicts:
            for reason in REASONS:
                log_metric(f"math_reward/{reason}", sum(v.reason == reason for v in verdicts) / len(verdicts))
            if truncated is not None:
                log_metric("math_reward/truncated", sum(truncated) / len(truncated))
        if log_extra is not None:
            log_extra("extracted", [verdict.answer or "" for verdict in verdicts])
            log_extra("reason", [verdict.reason for verdict in verdicts])
        return [verdict.score for verdict in verdicts]

    def close(self) -> None:
        """End the workers of the grader; they also end with the process."""
        self.grader.close()


def _gold(gold: object) -> str:
    """A gold as text; None becomes an empty one, which is a bad gold."""
    if gold is None:
        return ""
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise TypeError(f"a gold is of type {type(gold).__name__}: {gold!r}; expected text or a number")
    return str(gold)


@cache
def _shared() -> MathReward:
    return MathReward()


def math_reward(
    completions: Sequence[Completion], answer: Sequence[object] | None = None, **columns: Any
) -> list[float | None]:
    """`MathReward` with its defaults, as a function: `GRPOTrainer(..., reward_funcs=math_reward)`.

    All calls in a process share one grader.
    """
    return _shared()(completions, answer, **columns)


def answer_reward(completions: Sequence[Completion], answer: Sequence[object], **kwargs: Any) -> list[float]:
    """`exact_match` as a TRL reward function: one reward, 1.0 or 0.0, per completion.

    Args:
        completions: [B] texts, messages or conversations; see `dgpo.grading.text_of`.
        answer: [B] the data set's column of references.
        kwargs: the other columns, not read.

    Raises:
        ValueError: `completions` and `answer` differ in length.
    """
    if len(completions) != len(answer):
        raise ValueError(
            f"{counted(len(completions), 'completion')} and {counted(len(answer), 'answer')}; "
            "expected one answer for each"
        )
    return [exact_match(text, expected) for text, expected in zip(texts_of(completions), answer, strict=True)]


class FormatReward:
    r"""1.0 for a well-formed response, otherwise 0.0.

    Well-formed: `<think>`, thinking that is not empty, `</think>`, then text with exactly one box (`\boxed` or
    `\fbox`), closed and not empty; end tokens may follow. Nothing precedes `<think>`, and each tag occurs once.
    A shaping term (`shaping_term`): a wrong answer may be well-formed.

    Args:
        opened_in_prompt: whether the chat template writes `<think>` at the end of the prompt, as DeepSeek-R1's does, so
            that a completion starts within its thinking and must not open it again. None: detected from `prompts`
            that are texts ending in `<think>`. Prompts that are conversations do not show the template: set it there.

    Raises:
        ValueError: the option is not True, False or None.
    """

    __name__: ClassVar[str] = "format_reward"
    shaping: ClassVar[bool] = True

    def __init__(self, *, opened_in_prompt: bool | None = None) -> None:
        if opened_in_prompt not in (True, False, None):
            raise ValueError(f"opened_in_prompt = {opened_in_prompt!r} is not allowed; expected True, False or None")
        self.opened_in_prompt = opened_in_prompt

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        """One reward per completion.

        Args:
            completions: [B] texts, messages or conversations; see `dgpo.grading.text_of`.
            prompts: [B] texts or conversations, of TRL.
            columns: the other columns, not read.

        Raises:
            ValueError: the lengths differ.
        """
        if prompts is not None and len(prompts) != len(completions):
            raise ValueError(
                f"{counted(len(completions), 'completion')} and {counted(len(prompts), 'prompt')}; "
                "expected one prompt for each"
            )
        opened = [self._opened(prompt) for prompt in prompts or [None] * len(completions)]
        return [float(_well_formed(text, at)) for text, at in zip(texts_of(completions), opened, strict=True)]

    def _opened(self, prompt: Any) -> bool:
        if self.opened_in_prompt is not None:
            return self.opened_in_prompt
        return isinstance(prompt, str) and prompt.rstrip().endswith("<think>")


@shaping_term
def format_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """`FormatReward` with its defaults, as a function."""
    return FormatReward()(completions, **columns)


_AT_THE_END = re.compile(rf"(?:(?:{'|'.join(map(re.escape, END_OF_TEXT))})\s*)++\Z")


def _well_formed(text: str, opened: bool) -> bool:
    text = _AT_THE_END.sub("", text.strip())
    if opened:
        text = "<think>" + text
    if text.count("<think>") != 1 or text.count("</think>") != 1 or not text.startswith("<think>"):
        return False
    thinking, _, rest = text.removeprefix("<think>").partition("</think>")
    # another message or an end token in `rest` would hide a part of it
    if not visible(thinking) or said(text) != rest:
        return False
    found = boxes(rest)
    return len(found) == 1 and found[0] is not None and Box(rest[found[0]]).answer is not None


class SoftOverlongReward:
    r"""DAPO's soft overlong punishment, to be added to the correctness reward::

                  0                                    |y| <= L - buffer
        R(y) =    ((L - buffer) - |y|) / buffer        L - buffer < |y| <= L
                  -1                                   |y| > L

    with `|y|` the tokens of the completion and L = `max_completion_length` (arXiv 2503.14476, equation 13; there L is
    20,480 and the buffer 4,096). A shaping term (`shaping_term`).

    Args:
        max_completion_length: L.
        buffer: number of tokens over which the punishment grows from 0 to -1.

    Raises:
        ValueError: unless 0 < buffer < max_completion_length.
    """

    __name__: ClassVar[str] = "soft_overlong_reward"
    shaping: ClassVar[bool] = True

    def __init__(self, *, max_completion_length: int, buffer: int) -> None:
        if not 0 < buffer < max_completion_length:
            raise ValueError(
                f"buffer = {buffer}, max_completion_length = {max_completion_length}; expected 0 < buffer < "
                "max_completion_length"
            )
        self.max_completion_length = max_completion_length
        self.buffer = buffer

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """One punishment in [-1, 0] per completion, from [B] lists of token ids."""
        start = self.max_completion_length - self.buffer
        return [max(-1.0, min(0.0, (start - len(ids)) / self.buffer)) for ids in completion_ids]


def soft_overlong_reward(*, max_completion_length: int, buffer: int) -> SoftOverlongReward:
    """The reward function for these lengths; see `SoftOverlongReward`."""
    return SoftOverlongReward(max_completion_length=max_completion_length, buffer=buffer)
