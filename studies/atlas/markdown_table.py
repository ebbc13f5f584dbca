"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> str:
    """A table; with `numbers`, all columns but the first are aligned to the right."""
    names = list(head)
    align = ["---", *["--:" if numbers else "---"] * (len(names) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, align, *rows])
