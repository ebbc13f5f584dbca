"""Sums and products that show their factors: a plan multiplies out, because what it prints is what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo import counts

DIGITS = 4
"""Significant digits of a factor that is not a whole number."""

_SUM, _PRODUCT, _NUMBER = 0, 1, 2


@dataclass(frozen=True)
class Quantity:
    """A number with the formula that gives it; `str` is the formula.

    Attributes:
        value: of the formula as it is shown, rounded factors included.
        text: the formula.
        binds: how tightly its outermost operation binds, for brackets.
    """

    value: float
    text: str
    binds: int = _NUMBER

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.value + other.value, f"{self.text} + {other.text}", _SUM)

    def __mul__(self, other: Quantity) -> Quantity:
        return Quantity(self.value * other.value, f"{self._factor()} x {other._factor()}", _PRODUCT)

    def __truediv__(self, other: Quantity) -> Quantity:
        divisor = other.text if other.binds == _NUMBER else f"({other.text})"
        return Quantity(self.value / other.value, f"{self._factor()} / {divisor}", _PRODUCT)

    def __str__(self) -> str:
        return self.text

    def _factor(self) -> str:
        return f"({self.text})" if self.binds == _SUM else self.text

    def of(self, what: str) -> Quantity:
        """The same, followed by what it is of: a sum in brackets, or words after a product."""
        return Quantity(self.value, f"{self._factor()} {what}", self.binds if self.binds != _SUM else _PRODUCT)


def quantity(value: float, unit: str = "", scale: float = 1.0) -> Quantity:
    """A factor as it is shown: at least `DIGITS` significant digits, and what is before the point in full.

    Args:
        value: in units.
        unit: in words, behind the number; `quantity(0.35, "%")` is written 35%.
        scale: of the unit, such as 1e12 of a TFLOP/s.
    """
    if unit == "%":
        return Quantity(value, f"{value * 100:.{DIGITS}g}%")
    if float(value).is_integer() or abs(value) >= 10 ** (DIGITS - 1):
        rounded = float(round(value))
        text = f"{rounded:,.0f}"
    else:
        text = f"{value:.{DIGITS}g}"
        # computed with as it is shown, so that the printed formula multiplies out
        rounded = float(text)
    return Quantity(rounded * scale, f"{text} {unit}".strip())


def counted(number: float, noun: str, plural: str = "s") -> Quantity:
    """`1 rank`, `8 ranks`."""
    return quantity(number, counts.plural(number, noun, noun + plural))


def over(total: Quantity, number: float, noun: str, plural: str = "s") -> Quantity:
    """`total / 8 ranks`; `total` itself for one of them."""
    return total if number == 1 else total / counted(number, noun, plural)


def duration(seconds: float) -> str:
    """In seconds, minutes, hours or days, with two digits at least: `38 s`, `5.9 h`, `28 h`, `57 days`."""
    for unit, size, end in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 72 * 3600)):
        if seconds < end:
            return f"{_two(seconds / size)} {unit}"
    return f"{_two(seconds / 86400)} days"


def _two(value: float) -> str:
    # from 9.95 on two significant digits reach the point
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"
