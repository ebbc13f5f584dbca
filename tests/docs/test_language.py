"""Phrases that a reader stumbled over are on no page and in no message."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dgpo

BANNED = (
    r"what (that|this|it) comes to",
    r"can half \w+",
    r"on nothing but",
    r"\bno favours\b",
    r"\ba usual one\b",
    r"\bpushed down by their own\b",
    r"\bcry wolf\b",
    r"\bholds? the truth\b",
    r"\bthat is what \w+ (is|are) for\b",
    r"\bexactly, in a toy\b",
    r"\bis no number\b",
    r"\bgroups? (that )?teach(es)? nothing\b",
    r"\bflatters\b",
    r"\bthe house('s)? (style|rules?)\b",
)
"""Metaphors, riddles and word-for-word translations that a reader has to read twice."""

SEARCH = re.compile("|".join(BANNED), re.IGNORECASE)
PACKAGE = Path(dgpo.__file__).parent


def pages(root: Path) -> list[Path]:
    """All documentation; the changelog quotes old texts, and registered designs in studies/ stay as they are."""
    found = [root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/README.md")]
    return [*found, *(root / "docs").rglob("*.md"), *(root / "benchmarks").glob("*.md")]


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every literal of a module: messages, help and docstrings."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


def test_pages_are_free_of_them(root: Path) -> None:
    read = {page: " ".join(page.read_text(encoding="utf-8").split()) for page in pages(root)}
    assert len(read) > 30
    assert {
        str(page.relative_to(root)): found[0] for page, text in read.items() if (found := SEARCH.search(text))
    } == {}


def test_messages_and_docstrings_are_free_of_them() -> None:
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: {match[0]}"
        for file in sorted(PACKAGE.rglob("*.py"))
        for line, text in strings(file)
        if (match := SEARCH.search(text))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text", ["the plan prints what that comes to", "exact tables and no favours", "it holds the truth"]
)
def test_the_search_finds_them(text: str) -> None:
    assert SEARCH.search(text)
