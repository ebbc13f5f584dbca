"""Exact match of final answers: equal text, or equal rational numbers. Nothing is evaluated, no float is involved.

Model text is hostile input: every step here is linear in its length, and numbers are parsed up to a fixed size.
"""

from __future__ import annotations

import re
from fractions import Fraction

from dgpo.grading.answers import last_box
from dgpo.grading.responses import Completion, said, text_of

MAX_CHARACTERS = 100
"""Longer numbers are compared as text only, to bound the cost of exact arithmetic."""

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
# a minus after a letter, a digit or a closing bracket is a subtraction: the last number of "5-3" is 3
_NUMBER = re.compile(rf"(?:(?<![\w)\]}}])(?P<minus>[-−]))?(?:\\?\$)?(?P<over>{_DECIMAL})(?:/(?P<under>{_DECIMAL}))?")


def answer_of(response: Completion) -> str | None:
    r"""The final answer in a response, from its last message after the thinking (`dgpo.grading.said`).

    The content of the last `\boxed{...}` (see `boxed_answer`); without a box, the last number (`-3`, `1,234`, `0.5`,
    `3/4`, after a `$`, before a full stop); without a number, the whole text. None if that is empty, or if the last box
    is empty or was never closed.
    """
    text = said(text_of(response)).strip()
    if (box := last_box(text)) is not None:
        return box.answer
    number = None
    for match in _NUMBER.finditer(_plain(text)):
        number = match
    return number.group() if number is not None else text or None


def exact_match(completion: Completion, answer: object) -> float:
    """1.0 if the completion's final answer is `answer`, as text or as a rational number, otherwise 0.0.

    Text is compared after `strip`, numbers exactly: 0.5 = 1/2 and 1,234 = 1234.0, but 0.333 is not 1/3.

    Args:
        completion: the response; see `answer_of` for its answer. It also matches if its whole text is that of the
            answer, so that answers such as "3 apples" can match.
        answer: the reference, text or number; in a GSM8K solution, the part after `####`.
    """
    expected = str(answer).rpartition("####")[2].strip()
    given = answer_of(completion)
    if given is None or not expected:
        return 0.0
    if expected in (given, said(text_of(completion)).strip()):
        return 1.0
    number = _rational(expected)
    return float(number is not None and number == _rational(given))


def _plain(text: str) -> str:
    """LaTeX writes 1{,}234 to keep a comma tight."""
    return text.replace("{,}", ",")


def _rational(text: str) -> Fraction | None:
    if len(text) > MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(_plain(text).strip("$ ").rstrip("."))
    if match is None:
        return None
    under = _fraction(match["under"] or "1")
    if under == 0:
        return None
    return _fraction(match["over"]) / under * (-1 if match["minus"] else 1)


def _fraction(decimal: str) -> Fraction:
    return Fraction(decimal.replace(",", ""))
