"""Exact scorers for reasoning-gym's tasks. Model text is hostile input: it is compared or parsed, never evaluated.

The answer in a response is the content of its last box, or without a box its whole text (see `dgpo.grading.said`); no
number is picked from a sentence. A box that is empty or was never closed holds no answer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from math import gcd

from dgpo.grading import Completion, last_box, said, text_of
from dgpo.grading.mathematics import number
from dgpo.tasks.gym_table import How

MAX_EXPRESSION = 200
"""Characters: bounds the depth of the syntax tree and the size of its numbers."""

_EXPRESSION = re.compile(rf"[0-9+\-*/() ]{{1,{MAX_EXPRESSION}}}")
_FRACTION = re.compile(
    r"\$?\s*(?:\\[dt]?frac\s*\{([0-9]{1,30})\}\s*\{([0-9]{1,30})\}|([0-9]{1,30})\s*/\s*([0-9]{1,30}))\s*\$?"
)
_BESIDE_PUNCTUATION = re.compile(r" ?([\[\],]) ?")


def final_text(response: Completion) -> str | None:
    r"""The answer of a response: its last `\boxed{}`, or without a box its whole text; None if that is empty."""
    text = said(text_of(response)).strip()
    box = last_box(text)
    return (text or None) if box is None else box.answer


def value(response: Completion, answer: str) -> float:
    """1.0 for the answer's text, up to spaces and blank lines, or for an equal rational number; otherwise 0.0."""
    return _same(final_text(response), answer)


def caseless(response: Completion, answer: str) -> float:
    """`value`, ignoring case."""
    given = final_text(response)
    return _same(None if given is None else given.casefold(), answer.casefold())


def literal(response: Completion, answer: str) -> float:
    """1.0 for the answer's text, up to spaces and blank lines; otherwise 0.0."""
    given = final_text(response)
    return float(given is not None and _normal(given) == _normal(answer))


def reduced(response: Completion, answer: str) -> float:
    r"""1.0 for the answer's fraction in lowest terms, as `a/b` or `\frac{a}{b}`; otherwise 0.0."""
    given = _FRACTION.fullmatch(final_text(response) or "")
    gold = _FRACTION.fullmatch(answer.strip())
    if given is None or gold is None:
        return 0.0
    # the pattern has two groups for each notation; those of the other one are None
    a, b = (int(digits) for digits in given.groups() if digits is not None)
    p, q = (int(digits) for digits in gold.groups() if digits is not None)
    return float(gcd(a, b) == 1 and (a, b) == (p, q))


def expression(response: Completion, answer: str) -> float:
    """1.0 for arithmetic with exactly the numbers of the answer and with its value; otherwise 0.0.

    Only integers, + - * / and parentheses, at most 200 characters, in exact fractions.
    """
    given, gold = _evaluate(final_text(response) or ""), _evaluate(answer)
    return float(given is not None and given == gold)


SCORERS: dict[How, Callable[[Completion, str], float]] = {
    "value": value,
    "caseless": caseless,
    "literal": literal,
    "reduced": reduced,
    "expression": expression,
}


def _same(given: str | None, answer: str) -> float:
    if given is None:
        return 0.0
    if _normal(given) == _normal(answer):
        return 1.0
    gold = _rational(answer)
    return float(gold is not None and gold == _rational(given))


def _rational(text: str) -> Fraction | None:
    """One number; None for several, which `number` would read as the digits of one."""
    text = text.strip()
    return None if len(text.split()) > 1 else number(text)


def _normal(text: str) -> str:
    """One line per line that is not blank, one space between words, none beside brackets and commas."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return _BESIDE_PUNCTUATION.sub(r"\1", "\n".join(line for line in lines if line))


def _evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """Value and sorted integers of an arithmetic expression; None if it is anything else."""
    text = text.strip()
    if _EXPRESSION.fullmatch(text) is None:
        return None
    numbers: list[int] = []
    try:
        result = _walk(ast.parse(text, mode="eval").body, numbers)
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError):  # the last two: what ast raises for depth
        return None
    return None if result is None else (result, sorted(numbers))


def _walk(node: ast.expr, numbers: list[int]) -> Fraction | None:
    match node:
        case ast.Constant(value=int(integer)):
            numbers.append(integer)
            return Fraction(integer)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _walk(operand, numbers)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _walk(left, numbers), _walk(right, numbers)
            if a is None or b is None:
                return None
            # `**` and `//` pass the pattern and are refused here: a power could be of any size
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    return None
