"""Dataclass fields that declare their range, `eps_low: float = number(0.2, "[0, 1)")`, and the check of it.

Each range is declared once, in the metadata of its field: `Checked` rejects values outside it, and tables and
documentation print it (`range_text`).
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

REQUIRED = dataclasses.MISSING
"""Default of a field that has to be given."""

LARGEST = 3.4e38
"""A finite number of more than this does not fit a float32, in which most tensors are."""

_EXACT = 2**53
"""Up to here a float holds every int, and a tensor takes it as one."""

_METADATA = "allowed"
_INTERVAL = re.compile(r"[\[(]([^,]+), ([^,]+)[\])]")


def number(default: Any, interval: str) -> Any:
    """A field for a number in an interval, such as "[0, 1)" or "(0, inf]"; None is allowed where it is the default.

    An end may name other fields: "[1 + eps_high, inf]"; one that is None sets no limit. NaN is in no interval, a
    finite number beyond `LARGEST` neither, and a bool is not a number. numpy's numbers and fractions become plain ones.
    """
    return _field(default, Interval(interval))


def integer(default: Any, interval: str) -> Any:
    """A field for an int in an interval; as `number` otherwise."""
    return _field(default, Interval(interval, whole=True))


def choice(default: Any, *values: str | bool) -> Any:
    """A field for one of these values; None is allowed where it is the default."""
    return _field(default, Choice(values))


def flag(default: bool) -> Any:
    """A field for True or False."""
    return choice(default, True, False)


def _field(default: Any, rule: Interval | Choice) -> Any:
    return dataclasses.field(default=default, metadata={_METADATA: rule})


class Checked:
    """Base of dataclasses that rejects values outside the declared ranges. A field without a range may have any value.

    Raises:
        ValueError: if a value is outside its range; names class, field, value and range.
        TypeError: if a range names something that is not a field.
    """

    def __post_init__(self) -> None:
        fields = dataclasses.fields(cast(Any, self))
        # every value by itself first, so that an end that names another field is known to be a number
        for others in ({}, {field.name: getattr(self, field.name) for field in fields}):
            for field in fields:
                value, rule = getattr(self, field.name), allowed(field)
                if rule is None or (value is None and optional(field)):
                    continue
                if not rule.allows(value, others):
                    expected = rule.expected(others, value) + (", or None" if optional(field) else "")
                    raise ValueError(_refusal(f"{type(self).__name__}: {field.name}", value, expected))
                # the dataclass is frozen, which __setattr__ enforces
                object.__setattr__(self, field.name, rule.plain(value))


def check_value(label: str, value: object, interval: str, *, whole: bool = False) -> None:
    """Raise ValueError unless `value`, which the error calls `label`, is a number (an integer) in the interval."""
    rule = Interval(interval, whole)
    if not rule.allows(value, {}):
        raise ValueError(_refusal(label, value, rule.expected({}, value)))


def allowed(field: dataclasses.Field[Any]) -> Interval | Choice | None:
    """The range of a field, beside None where the field is `optional`; None if it declares no range."""
    return field.metadata.get(_METADATA)


def range_text(field: dataclasses.Field[Any]) -> str:
    """The range as tables print it: "in [0, 1)", "None or in [1, inf]", "'token' or 'sequence'", "any"."""
    return ("None or " if optional(field) else "") + str(allowed(field) or "any")


def optional(field: dataclasses.Field[Any]) -> bool:
    """Whether the field may be None: where that is its default."""
    return field.default is None


@dataclass(frozen=True)
class Interval:
    """The numbers between two ends.

    Args:
        text: as in mathematics, where "[" and "]" include the end and "(" and ")" do not. An end is a number, the name
            of a field, or a sum of them.
        whole: only ints.

    Raises:
        ValueError: the text is not an interval.
    """

    text: str
    whole: bool = False

    def __post_init__(self) -> None:
        if not _INTERVAL.fullmatch(self.text):
            raise ValueError(f"{self.text!r} is not an interval; expected one such as '[0, 1)' or '(0, 1 + eps_high]'")

    def __str__(self) -> str:
        return f"an integer in {self.text}" if self.whole else f"in {self.text}"

    def ends(self, others: Mapping[str, Any]) -> tuple[float, float]:
        """Both ends, with the values of the fields that they name; infinite for one that is None, or without `others`.

        Raises:
            TypeError: a name that `others` does not have.
        """
        low, high = _INTERVAL.fullmatch(self.text).groups()  # type: ignore[union-attr]
        return _sum(low, others, -math.inf), _sum(high, others, math.inf)

    def allows(self, value: object, others: Mapping[str, Any]) -> bool:
        """Whether the value is such a number; `others` are the values of the fields that an end may name."""
        if not isinstance(value, Integral if self.whole else Real) or isinstance(value, bool):
            return False
        size = _size(value)
        if size is None:
            return False
        low, high = self.ends(others)
        # NaN fails both comparisons, so no interval contains it
        above = low < size if self.text.startswith("(") else low <= size
        below = size < high if self.text.endswith(")") else size <= high
        return above and below

    def plain(self, value: Any) -> int | float:
        """An allowed number as an int or a float, which tensors and JSON take."""
        return int(value) if isinstance(value, Integral) and (self.whole or abs(int(value)) <= _EXACT) else float(value)

    def expected(self, others: Mapping[str, Any], value: object) -> str:
        """The range as an error states it; if an end names a field that `others` has, its value follows."""
        low, high = self.ends(others)
        words = f"{'an integer' if self.whole else 'a number'} in {self.text}"
        if self.ends(others) != self.ends({}):
            words += f" = {self.text[0]}{low:.12g}, {high:.12g}{self.text[-1]}"
        too_large = isinstance(value, Real) and _size(value) is None and high > LARGEST
        return f"{words}, and a finite one up to {LARGEST:g}" if too_large else words


def _size(value: Real) -> float | None:
    """As a float; None for one that is finite and beyond `LARGEST`."""
    try:
        size = float(value)
    except OverflowError:  # an int with hundreds of digits
        return None
    return None if LARGEST < abs(size) < math.inf else size


def _sum(text: str, others: Mapping[str, Any], missing: float) -> float:
    total = 0.0
    for term in text.split(" + "):
        try:
            total += float(term)
        except ValueError:
            # without `others`, in the first pass, an end that names a field sets no limit yet
            if others and term not in others:
                raise TypeError(f"the range of a field ends at {term!r}, which is not a field") from None
            found = others.get(term)
            total += missing if found is None else found
    return total


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[str | bool, ...]

    def __str__(self) -> str:
        return " or ".join(repr(value) for value in self.values)

    def allows(self, value: object, others: Mapping[str, Any]) -> bool:
        """Whether the value is one of them; 1 is not True."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def plain(self, value: Any) -> Any:
        """The value itself."""
        return value

    def expected(self, others: Mapping[str, Any], value: object) -> str:
        """The choice as an error states it."""
        return str(self)


def _refusal(label: str, value: object, expected: str) -> str:
    shown = " ".join(reprlib.repr(value).split())  # a tensor has several lines
    return f"{label} = {shown} is not allowed; expected {expected}"
