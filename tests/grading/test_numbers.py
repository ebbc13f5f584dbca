"""Exact numbers and the tolerance."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo.grading.mathematics.numbers import equal, number

VALUES = [
    ("42", 42),
    ("-7", -7),
    ("+7", 7),
    ("1,234", 1234),
    ("1,234.50", Fraction(2469, 2)),
    (".5", Fraction(1, 2)),
    ("3.", 3),
    ("3/4", Fraction(3, 4)),
    ("-3/4", Fraction(-3, 4)),
    ("(5)", 5),
    (r"\frac{1}{2}", Fraction(1, 2)),
    (r"-\frac12", Fraction(-1, 2)),
    (r"6 \frac{1}{64}", Fraction(385, 64)),
    (r"-6\frac{1}{64}", Fraction(-385, 64)),
    (r"\frac{-1}{2}", Fraction(-1, 2)),
    ("32, 349", None),  # two numbers
    ("1,23", None),
    ("1/0", None),
    (r"\frac{1}{0}", None),
    ("1/2/3", None),
    ("", None),
    ("-", None),
    (".", None),
    ("x", None),
    ("nan", None),
    ("1e5", None),  # rewritten to 1 \times 10^{5} before it gets here
    ("9" * 201, None),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values(text, value):
    assert number(text) == value


@given(st.fractions(max_denominator=10**6))
def test_fractions_are_exact(value):
    assert number(f"{value.numerator}/{value.denominator}") == value
    assert number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**9), max_value=10**9))
def test_decimals_are_exact(value):
    assert number(f"{value:f}") == Fraction(value)


EQUAL = [
    ("42", "42.0", True),
    ("42", "84/2", True),
    ("42", "42.0000001", False),  # integers are exact
    ("42.0", "42.00001", True),  # 2.4e-7 of it
    ("42.0", "42.0001", False),
    ("0.0000001", "0", False),
    ("0.0000001", "0.0000002", False),  # relative: small is not nothing
    ("0.066666793", "0.0666668", True),
    ("0.066793", "0.067", False),
    ("2.23", "2.232", False),
    ("1/3", "0.333333", True),
    ("1/3", "0.333", False),
    ("12.55", "640/51", True),  # 12.549..., rounds to the gold
    ("12.55", "640/52", False),
    ("0.5", "31/60", False),  # one digit says nothing about rounding
    ("1", "100", False),
    ("123456789012345678", "123456789012345679", False),
]


@pytest.mark.parametrize(("gold", "answer", "same"), EQUAL)
def test_tolerance(gold, answer, same):
    assert equal(gold, number(gold), answer, number(answer)) is same
