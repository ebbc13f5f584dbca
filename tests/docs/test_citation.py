"""CITATION.cff agrees with the package and with the papers of the two methods; docs/papers.md with all papers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import dgpo
from dgpo.objectives import OBJECTIVES, Paper
from dgpo.objectives.paper import family
from dgpo.objectives.presets import PRESETS


def as_reference(paper: Paper) -> dict[str, object]:
    """What CITATION.cff says about a paper."""
    assert paper.pages is not None
    start, end = paper.pages.split("-")
    return {
        "type": "conference-paper",
        "title": paper.title,
        "authors": [{"given-names": name.rpartition(" ")[0], "family-names": family(name)} for name in paper.authors],
        "collection-title": paper.book,
        "start": int(start),
        "end": int(end),
        "year": paper.year,
        "identifiers": [
            {"type": "other", "value": f"arXiv:{paper.arxiv_id}", "description": "arXiv"},
            {"type": "other", "value": paper.anthology, "description": "ACL Anthology"},
        ],
        "url": paper.link,
        "repository-code": paper.code,
    }


def test_citation(root: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="reading CITATION.cff needs PyYAML")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == ("dgpo", "Apache-2.0")
    assert str(citation["version"]) == dgpo.__version__
    assert citation["authors"] == [{"name": "The dgpo authors"}]
    assert citation["references"] == [as_reference(OBJECTIVES[name].papers[0]) for name in ("dgpo", "maspo")]


def test_the_page_of_papers_names_every_paper(root: Path) -> None:
    """Id, title and authors, as the objectives and presets have them."""
    page = (root / "docs" / "papers.md").read_text(encoding="utf-8")
    for paper in [paper for cls in OBJECTIVES.values() for paper in cls.papers] + [p.paper for p in PRESETS.values()]:
        assert f"| {paper.markdown()} |" in page, f"docs/papers.md lacks: {paper.markdown()}"


@pytest.mark.parametrize("page", ["docs/papers.md", "docs/index.md", "README.md"])
def test_a_linked_title_is_the_title_of_that_paper(root: Path, page: str) -> None:
    known = {p.arxiv_id: p.title for cls in OBJECTIVES.values() for p in cls.papers}
    known |= {preset.paper.arxiv_id: preset.paper.title for preset in PRESETS.values()}
    text = (root / page).read_text(encoding="utf-8")
    for words, arxiv in re.findall(r"\[([^\]]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", text):
        if arxiv in known and not words.startswith("arXiv ") and words != arxiv:
            assert words == known[arxiv]


def test_readme_says_whose_code_the_recorded_values_are(root: Path) -> None:
    """The authors', where the repository of a method's values is the one that its paper declares."""
    words = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    found = re.search(
        r": the authors' for (\d+) methods, a framework's for (.+?)\. (.+?) have no code to compare with", words
    )
    assert found is not None
    theirs = int(found[1])
    others, none = (
        {name.strip("`").lower().replace("-", "_") for name in re.split(r", | and ", part)}
        for part in found.groups()[1:]
    )
    recorded: dict[str, str] = {}
    for file in sorted((root / "tests" / "golden").glob("*.json")):
        cases = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(cases, list):
            recorded.setdefault(cases[0].get("objective", file.stem), str(cases[0]["source"]).partition("@")[0])
    own = {
        name
        for name, cls in OBJECTIVES.items()
        if name in recorded and cls.papers[0].code == f"https://github.com/{recorded[name]}"
    }
    # DPPO stands for dppo_tv and dppo_kl
    assert {other for other in others for name in set(recorded) - own if name.startswith(other)} == others
    assert all(name.startswith(tuple(others)) for name in set(recorded) - own)
    assert none == set(OBJECTIVES) - set(recorded)
    assert theirs == len(own)
