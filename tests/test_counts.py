"""Counts in messages: singular and plural, and that no message of the package writes one by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dgpo
from dgpo.counts import counted, plural

PACKAGE = Path(dgpo.__file__).parent
NOUNS = """answers arms bytes checkpoints columns comparisons completions entries evaluations files findings folders
generations GPUs groups layers lines methods objectives pairs parameters problems processes prompts ranks requests
responses rewards rows runs samples seeds settings steps tasks tokens trials updates"""
PLURAL = re.compile(rf" ((?!of )[a-z-]+ ){{0,2}}({'|'.join(NOUNS.split())})\b")
"""What follows a number: a noun, with up to two adjectives before it."""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 prompts"),
        (1, "1 prompt"),
        (2, "2 prompts"),
        (12345, "12,345 prompts"),
        (1.0, "1 prompt"),
        (2.5, "2.5 prompts"),
    ],
)
def test_a_number_and_its_noun(number: float, text: str) -> None:
    assert counted(number, "prompt") == text


def test_an_irregular_plural_is_given() -> None:
    assert (plural(1, "entry", "entries"), plural(3, "entry", "entries")) == ("entry", "entries")
    assert counted(2, "logged step") == "2 logged steps"


def by_hand(source: str) -> Iterator[tuple[int, str]]:
    """Lines of a module where an f-string puts a length or a sum before a plural; "3 of {len(x)} steps" may."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        before = ""
        for part, after in zip(node.values, node.values[1:], strict=False):
            if isinstance(part, ast.Constant):
                before = str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            number = ast.unparse(part.value)
            is_count = number.startswith(("len(", "int(")) or number.endswith(".sum()")
            text = str(after.value) if isinstance(after, ast.Constant) else ""
            if is_count and PLURAL.match(text) and not before.endswith("of "):
                yield node.lineno, f"{{{number}}}{text[:30]}"


def test_no_message_counts_by_hand() -> None:
    """`{len(x)} prompts` would say "1 prompts"; `counted(len(x), "prompt")` does not."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 300
    found = {str(file.relative_to(PACKAGE)): list(by_hand(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_plurals_are_formed_in_one_place() -> None:
    """No `"s" * (number != 1)`, and no `"step" if number == 1 else "steps"`."""
    other = re.compile(r"""["']s["'] \* |["'](\w+)["'] if [^"'\n]+ == 1 else ["']\1s["']""")
    files = [file for file in PACKAGE.rglob("*.py") if other.search(file.read_text(encoding="utf-8"))]
    assert [str(file.relative_to(PACKAGE)) for file in files] == []


def test_the_search_finds_one() -> None:
    assert list(by_hand('f"the data has {len(rows)} prompts"')) == [(1, "{len(rows)} prompts")]
    assert list(by_hand('f"on {one} of {len(rows)} logged steps"')) == []
