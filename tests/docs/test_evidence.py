"""The page of claims: every claim has its parts, one verdict in two places, and sources that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dgpo.cli.study_file import read, study_of
from dgpo.comparison.statistics import smallest_difference, smallest_p_value

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
    assert {path for path in paths if not (root / path).exists()} <= {"studies/atlas/"}


def test_public_sources_are_linked(page: str) -> None:
    """Every row of what others found leads to its source."""
    rows = page.split("## What others found")[1].split("\n## ")[0]
    table = [line for line in rows.splitlines() if line.startswith("| [")]
    assert len(table) > 10
    assert all(re.match(r"\| \[.+?\]\(https://(arxiv\.org|github\.com)/\S+\)", line) for line in table)


@pytest.mark.parametrize("column", [1, 2, 3])
def test_the_designs_are_the_studies(page: str, root: Path, column: int) -> None:
    """Arms, runs, updates and the smallest difference in the table are those of the file that it names."""
    table = page.split("## How to settle it")[1].split("## The numbers")[0]
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table.splitlines() if "|" in line
    }
    cell = {name: cells[column] for name, cells in rows.items() if len(cells) == 4}
    study = study_of(read(root / cell["file"].strip("`")))
    comparisons = len(study.arms) - 1
    assert cell["comparisons"].startswith(f"{comparisons}, with `{study.baseline.split(':')[0]}`")
    assert cell["seeds for the result"] == f"{len(study.seeds)} others"
    assert int(cell["updates of a run"].replace(",", "")) == study.updates
    trials = [len(values) for values in study.tune.values()]
    assert [int(word) for word in re.findall(r"\d+", cell["tuning of each arm"])] == [*trials, len(study.tuning_seeds)]
    runs = len(study.arms) * (len(study.seeds) + trials[0] * len(study.tuning_seeds))
    assert cell["all of it"].startswith(f"{runs} runs: ")
    least = smallest_difference(len(study.seeds), 1, comparisons=comparisons)
    assert cell["smallest difference"] == f"{least:.1f} σ"
    assert smallest_p_value(len(study.seeds)) < 0.05 / comparisons
