"""Arithmetic for small models: sums, sums and differences, and greatest common divisors."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from dgpo.tasks.procedural import Procedural, Spelling


@dataclass(frozen=True, kw_only=True)
class Addition(Procedural):
    """Two-digit addition, `12+34=` -> `46`: all 10,000 sums a+b with 0 <= a, b <= 99, split by `seed`.

    Args:
        seed: determines which sums go into which split; all results in the documentation use the default.

    Splits: `train` (9,000), `validation` (500; for early stopping of the starter model) and `test` (500; for evaluation
    only). 12+34 and 34+12 count as two problems here, unlike in the other tasks.
    """

    name: ClassVar[str] = "addition"
    summary: ClassVar[str] = "two-digit sums: 12+34= -> 46"
    max_new_tokens: ClassVar[int] = 5
    """Three digits and the end-of-text token, with one to spare."""

    def canonical(self, rng: random.Random) -> list[list[Spelling]]:
        """Every sum, with one spelling."""
        return [[(f"{a}+{b}=", str(a + b))] for a in range(100) for b in range(100)]


@dataclass(frozen=True, kw_only=True)
class PlusMinus(Procedural):
    """Sums and differences of two numbers from 0 to 99: `12+34=` -> `46`, `12-34=` -> `-22`.

    a+b, b+a, a-b and b-a are one problem: 5,050 problems, of which 4,050 are trained on, in about 16,000 spellings.
    """

    name: ClassVar[str] = "plus_minus"
    summary: ClassVar[str] = "two-digit sums and differences: 12-34= -> -22"
    max_new_tokens: ClassVar[int] = 5

    def canonical(self, rng: random.Random) -> list[list[Spelling]]:
        """Every unordered pair, with its sums and differences both ways round."""
        return [self._spellings(a, b) for a in range(100) for b in range(a, 100)]

    @staticmethod
    def _spellings(a: int, b: int) -> list[Spelling]:
        orders = [(a, b)] if a == b else [(a, b), (b, a)]
        return [
            *((f"{x}+{y}=", str(x + y)) for x, y in orders),
            *((f"{x}-{y}=", str(x - y)) for x, y in orders),
        ]


@dataclass(frozen=True, kw_only=True)
class Gcd(Procedural):
    """Greatest common divisors of two different numbers up to 200: `gcd(84,126)=` -> `42`.

    Only pairs with a divisor of at least 3 are used: it is 1 or 2 for three of four random pairs, which a model could
    always answer. Here the best constant answer, 3, is right for 29 %. gcd(a,b) and gcd(b,a) are one
    problem: 4,626 problems.
    """

    name: ClassVar[str] = "gcd"
    summary: ClassVar[str] = "greatest common divisors up to 200: gcd(84,126)= -> 42"
    max_new_tokens: ClassVar[int] = 5

    def canonical(self, rng: random.Random) -> list[list[Spelling]]:
        """Every unordered pair of different numbers with a common divisor above 2, both ways round."""
        pairs = [(a, b) for b in range(1, 201) for a in range(1, b) if math.gcd(a, b) > 2]
        return [[(f"gcd({x},{y})=", str(math.gcd(a, b))) for x, y in ((a, b), (b, a))] for a, b in pairs]
