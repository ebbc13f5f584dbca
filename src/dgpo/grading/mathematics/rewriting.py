"""Rules that rewrite text, applied one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]
"""A pattern, and what replaces every match of it."""


def rewrite(text: str, rules: Iterable[Rule]) -> str:
    """The text after all rules, in their order."""
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
