"""Two-digit addition: `12+34=` -> `46`. Small enough for a CPU, with a verifiable answer and a real held-out split."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from dgpo.tasks.procedural import Procedural, Spelling


@dataclass(frozen=True, kw_only=True)
class Addition(Procedural):
    """All 10,000 sums a+b with 0 <= a, b <= 99, split once by `seed` into disjoint parts.

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
