r"""The structure of an answer: an expression, a tuple or interval, or a collection.

Most hedges are decided by structure alone: `42 \text{ or } 43` is a list of two, and a list of two is not 42.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["list", "set", "union", "without"]


@dataclass(frozen=True)
class Expression:
    """A number, a formula, an equation or words.

    Attributes:
        latex: without its unit; words are between \\x02 and \\x03.
        unit: in one spelling, "" if there is none.
    """

    latex: str
    unit: str = ""


@dataclass(frozen=True)
class Ordered:
    """A tuple, or an interval: with a square bracket or an infinity it is one.

    Attributes:
        opening: "(" or "[".
        closing: ")" or "]".
        items: in order.
        names: x and y of (x, y) = (1, 2); x of 1 < x < 2; empty without any.
    """

    opening: str
    closing: str
    items: tuple[Reading, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Several answers, a set, a union, or the real line without some points.

    Attributes:
        kind: "list": bare, separated by commas, "and" or "or", in any order; "set": in braces; "union": of intervals
            and sets; "without": the real line without these points.
        items: what it holds.
        alternatives: whether the items of a list are joined by "or".
    """

    kind: Kind
    items: tuple[Reading, ...]
    alternatives: bool = False


Reading = Expression | Ordered | Collection

LINE = Ordered("(", ")", (Expression("-\\infty"), Expression("\\infty")))
"""The real line."""


def members(reading: Reading, *kinds: Kind) -> tuple[Reading, ...]:
    """The items of a collection of one of these kinds; anything else is its own only member."""
    return reading.items if isinstance(reading, Collection) and reading.kind in kinds else (reading,)
