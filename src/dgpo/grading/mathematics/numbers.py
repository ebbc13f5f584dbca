"""Exact numbers in the notations that answers use, and when two of them are equal. Standard library only.

No floats: 0.1 is one tenth. The tolerance is relative and applies only to numbers with a decimal point:

* an integer gold matches only that integer (or 42.0, or 84/2);
* a decimal gold of at least 3 significant digits matches an exact value that rounds to it: 12.55 matches 640/51;
* otherwise, if either has a decimal point, they may differ by 10^-6 of the gold.
"""

from __future__ import annotations

import re
from fractions import Fraction

RELATIVE_TOLERANCE = Fraction(1, 10**6)
ROUNDED_DIGITS = 3
MAX_CHARACTERS = 200
"""Longer numbers are not read, to bound the cost of exact arithmetic."""

_DECIMAL = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>\d*)\\frac(?:\{(?P<over>[-\d.]+)\}|(?P<over_digit>\d))"
    r"(?:\{(?P<under>[-\d.]+)\}|(?P<under_digit>\d))"
)
_LIST = re.compile(r",\s")  # 32, 349 is two numbers
_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d+)\s+(?P<over>\d+)\s*/\s*(?P<under>\d+)")
_BETWEEN_DIGITS = re.compile(r"(?<=[\d.,])(?:\s|\\[,;:! ]|~)+(?=[\d.])|(?<=\d)\s+(?=,\s*\d)")
_SPACE = re.compile(r"\s+|\\[,;:! ]")


def squeeze(text: str) -> str:
    """Without any kind of space, except one between two digits: 1 2 is not 12, and 1, 234 is not 1,234."""
    kept = _BETWEEN_DIGITS.sub("\x00", text)
    return _SPACE.sub("", kept).replace("\x00", " ")


def number(text: str) -> Fraction | None:
    r"""The value of `1,234.5`, `3/4`, `-\frac{1}{2}` or `6 \frac{1}{64}` (mixed, 385/64); None for anything else."""
    if len(text) > MAX_CHARACTERS or _LIST.search(text):
        return None
    mixed = _MIXED.fullmatch(text.strip())
    if mixed is not None:
        if not 0 < int(mixed["over"]) < int(mixed["under"]):
            return None
        sum_of = int(mixed["whole"]) + Fraction(int(mixed["over"]), int(mixed["under"]))
        return -sum_of if mixed["sign"] == "-" else sum_of
    text = squeeze(text)
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1 and "," not in text:
        text = text[1:-1]
    fraction = _FRACTION.fullmatch(text)
    if fraction is not None:
        over = _decimal(fraction["over"] or fraction["over_digit"])
        under = _decimal(fraction["under"] or fraction["under_digit"])
        if over is None or not under:
            return None
        whole = Fraction(fraction["whole"] or 0)
        if whole and not 0 < over < under:  # a product
            return None
        return -(whole + over / under) if fraction["sign"] == "-" else whole + over / under
    over_text, slash, under_text = text.partition("/")
    over = _decimal(over_text)
    if not slash:
        return over
    under = _decimal(under_text)
    return over / under if over is not None and under else None


def _decimal(text: str) -> Fraction | None:
    if not _DECIMAL.fullmatch(text) or not any(character.isdigit() for character in text):
        return None
    return Fraction(text.replace(",", ""))


def equal(gold: str, gold_value: Fraction, answer: str, answer_value: Fraction) -> bool:
    """Whether an answer equals the gold, both given as text and value; see the module for the tolerance."""
    if gold_value == answer_value:
        return True
    if "." not in gold and gold_value.denominator == 1:
        return False
    if "." in gold and "." not in answer:
        return rounds_to(gold, gold_value, answer_value)
    return ("." in gold or "." in answer) and within_tolerance(gold_value, answer_value)


def within_tolerance(gold: Fraction, answer: Fraction) -> bool:
    """|gold - answer| <= 10^-6 |gold|."""
    return abs(gold - answer) <= RELATIVE_TOLERANCE * abs(gold)


def rounds_to(gold: str, gold_value: Fraction, answer: Fraction) -> bool:
    """Whether an exact answer, rounded to the decimals of the gold, equals it."""
    decimals = squeeze(gold).partition(".")[2]
    # leading zeros are not significant
    digits = re.sub(r"\D", "", gold).lstrip("0")
    half = Fraction(1, 2 * 10 ** len(decimals))
    return len(digits) >= ROUNDED_DIGITS and decimals.isdigit() and abs(gold_value - answer) <= half
