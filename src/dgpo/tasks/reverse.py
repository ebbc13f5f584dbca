"""Spelling backwards: `reverse(track)=` -> `kcart`. Only copying, which small models learn fast."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import ClassVar

from dgpo.tasks.procedural import Procedural, Spelling

WORDS = 5_000
LENGTHS = (3, 6)


@dataclass(frozen=True, kw_only=True)
class Reverse(Procedural):
    """Spell 3 to 6 random lower-case letters backwards; each length occurs equally often.

    A word and its reverse are one problem; 5,000 are sampled with the seed.
    """

    name: ClassVar[str] = "reverse"
    summary: ClassVar[str] = "3 to 6 random letters backwards: reverse(qzk)= -> kzq"
    max_new_tokens: ClassVar[int] = 8

    def canonical(self, rng: random.Random) -> list[list[Spelling]]:
        """Distinct words, each with its reverse unless it is a palindrome."""
        words: dict[str, None] = {}
        low, high = LENGTHS
        while len(words) < WORDS:
            length = low + len(words) % (high - low + 1)
            word = "".join(rng.choices(string.ascii_lowercase, k=length))
            words[min(word, word[::-1])] = None
        return [[(f"reverse({w})=", w[::-1]) for w in dict.fromkeys((word, word[::-1]))] for word in words]
