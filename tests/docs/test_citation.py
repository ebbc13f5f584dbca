"""CITATION.cff agrees with the package and names both papers."""

from __future__ import annotations

from pathlib import Path

import pytest

import dgpo


def test_citation(root: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="reading CITATION.cff needs PyYAML")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["license"]) == ("dgpo", "Apache-2.0")
    assert str(citation["version"]) == dgpo.__version__
    assert citation["authors"] == [{"name": "The dgpo authors"}]
    ids = [{identifier["value"] for identifier in paper["identifiers"]} for paper in citation["references"]]
    assert ids == [{"arXiv:2603.14389", "2026.acl-long.1921"}, {"arXiv:2602.17550", "2026.acl-long.1918"}]
    for part in [citation, *citation["references"]]:
        assert part["type"]
        assert part["title"]
        assert part["authors"]
