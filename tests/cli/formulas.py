"""Computes formulas as a plan prints them: numbers, x, /, +, brackets, units; all other words say what of."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

GIB = 2.0**30
UNITS = {"TFLOP/s": 1e12, "GiB": GIB, "%": 0.01}
"""What is not 1."""
DURATIONS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}

_NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(formula: str) -> float:
    """What the formula comes to."""
    text = formula
    for unit, scale in UNITS.items():
        text = re.sub(rf"({_NUMBER}) ?{re.escape(unit)}", rf"(\1 x {scale!r})", text)
    words = re.compile(rf"{_NUMBER}|[()/+]|(?<= )x(?= )").findall(text)
    python = "".join({"x": "*"}.get(word, word.replace(",", "")) for word in words)
    return _of(ast.parse(python, mode="eval").body)


def _of(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_of(node.left), _of(node.right))
    assert isinstance(node, ast.Constant), ast.dump(node)
    assert isinstance(node.value, int | float)
    return float(node.value)


def half_a_unit(printed: str) -> float:
    """By how much a number that is printed like this may be off: half of its last digit."""
    digits, _, exponent = printed.replace(",", "").partition("e")
    decimals = len(digits.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def agrees(formula: str, printed: str, unit: float = 1.0) -> bool:
    """Whether the formula gives what is printed, in that unit, as far as the printed digits say."""
    found, said = value(formula) / unit, float(printed.replace(",", ""))
    return abs(found - said) <= half_a_unit(printed) * (1 + 1e-9)
