"""The page of claims: every claim has its parts, one verdict in two places, and sources that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

VERDICTS = {"supported", "not supported", "mixed", "not testable here"}
PARTS = ("Claim", "We ran", "Verdict", "To settle it")
MARKER = re.compile(r"<!-- atlas: (.+?) -->")


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "evidence.md").read_text(encoding="utf-8")


def claims(page: str) -> dict[str, str]:
    """The section of each claim, without the headings that follow it."""
    sections = re.findall(r"^### ([A-Z]\d+): .+?\n(.+?)(?=^\([a-z]\d+\)=|^#)", page, re.DOTALL | re.MULTILINE)
    return dict(sections)


def verdict(text: str) -> str:
    """One of the four, in bold or as a cell; or the name of what is to be filled in."""
    bare = text.strip().removeprefix("*Verdict*").strip(" :*")
    marker = MARKER.match(bare)
    return marker[1] if marker else re.split(r"\*\*|\|", bare)[0].strip(" :")


def test_every_claim_has_its_parts(page: str) -> None:
    assert len(claims(page)) == 22
    for name, section in claims(page).items():
        missing = [part for part in PARTS if f"\n* *{part}*" not in f"\n{section}"]
        assert missing == [], name
        assert "*Found*" in section or MARKER.search(section), name


def test_the_overview_has_the_verdicts_of_the_sections(page: str) -> None:
    overview = dict(re.findall(r"^\| \[([A-Z]\d+)\]\(#\w+\) \| .+ \| (.+) \|$", page, re.MULTILINE))
    assert list(overview) == list(claims(page))
    for name, section in claims(page).items():
        (line,) = re.findall(r"^\* (\*Verdict\*.*)$", section, re.MULTILINE)
        found = verdict(line)
        assert found == verdict(overview[name]), name
        assert found in VERDICTS or found == f"verdict {name}", f"{name}: {found!r} is not one of {sorted(VERDICTS)}"


def test_what_the_page_names_is_there(page: str, root: Path) -> None:
    """Tests, studies and recipes; all but the atlas while it is being written."""
    paths = set(re.findall(r"`((?:tests|studies|recipes)/[\w./-]+)`", page))
    assert len(paths) > 6
    assert {path for path in paths if not (root / path).exists()} <= {"studies/atlas/", "studies/addition.yaml"}


def test_public_sources_are_linked(page: str) -> None:
    """Every row of what others found leads to its source."""
    rows = page.split("## What others found")[1].split("\n## ")[0]
    table = [line for line in rows.splitlines() if line.startswith("| [")]
    assert len(table) > 10
    assert all(re.match(r"\| \[.+?\]\(https://(arxiv\.org|github\.com)/\S+\)", line) for line in table)
