"""Counts in messages: `1 prompt`, `2 prompts`, `1,024 prompts`."""

from __future__ import annotations


def plural(number: float, noun: str, many: str | None = None) -> str:
    """The noun in the form that goes with a number.

    Args:
        number: 1 takes the noun as it is, everything else its plural.
        noun: singular, with adjectives before it: "logged step".
        many: the plural, where it is not the noun with an s.
    """
    return noun if number == 1 else many or f"{noun}s"


def counted(number: float, noun: str, many: str | None = None) -> str:
    """The number, with separators of thousands, and the noun in the form that goes with it."""
    shown = f"{number:,.0f}" if float(number).is_integer() else f"{number:,g}"
    return f"{shown} {plural(number, noun, many)}"
