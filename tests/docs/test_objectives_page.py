"""docs/objectives.md and its figures are what the classes give."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgpo import TokenBatch
from dgpo.fields import number, range_text
from dgpo.objectives import OBJECTIVES, Objective, Paper, Properties, table


def matplotlib_is_pinned(root: Path) -> bool:
    found = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, "constraints.txt does not pin matplotlib"
    try:
        return importlib.metadata.version("matplotlib") == found.group(1)
    except importlib.metadata.PackageNotFoundError:
        return False


DRAWN: dict[str, bytes] = {}
"""Page and figures as the script writes them, which takes seven seconds: drawn by the first test that needs them."""


@pytest.fixture
def drawn_once(objectives_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    if not DRAWN:
        DRAWN.update(objectives_script.written())
    monkeypatch.setattr(objectives_script, "written", lambda figures=True: DRAWN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """A weight that stops for A > 0.

    With r the ratio::

        A > 0    w = 0
        else     w = min(r, cap)

    Args:
        cap: a number
            on two lines.

    Source: nowhere.
    """

    papers = (Paper(arxiv_id="1234.56789", title="On Toys", authors=("Ada Byron",), year=2030),)

    cap: float | None = number(None, "[1, inf]")

    def weight(self, tokens: TokenBatch) -> torch.Tensor:
        return torch.where(tokens.advantage > 0, 0.0, tokens.ratio.clamp(max=self.cap or 1.5))

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=1.5,
            not_ratio_inside="it stops for A > 0, and at the cap",
            limit_negative="finite",
            limit_positive="zero",
        )


def test_the_committed_page_is_current(objectives_script: ModuleType, root: Path) -> None:
    committed = (root / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert committed == objectives_script.page(), "run: python docs/generate_objectives.py"


@pytest.mark.usefixtures("drawn_once")
def test_the_committed_figures_are_current(objectives_script: ModuleType, root: Path) -> None:
    if not matplotlib_is_pinned(root):
        pytest.skip("this matplotlib draws other bytes than the pinned one")
    assert objectives_script.stale() == [], "run: python docs/generate_objectives.py"
    sizes = {path.name: path.stat().st_size for path in (root / "docs/figures/objectives").iterdir()}
    assert set(sizes) == {f"{name}.svg" for name in OBJECTIVES}
    assert max(sizes.values()) < 60_000


@pytest.mark.usefixtures("drawn_once")
def test_check_tells_what_is_stale(
    objectives_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert objectives_script.main(["--out", str(tmp_path)]) == 0
    assert objectives_script.main(["--out", str(tmp_path), "--check"]) == 0
    (tmp_path / "figures/objectives/is.svg").write_text("other")
    (tmp_path / "figures/objectives/gone.svg").write_text("of no method")
    assert objectives_script.main(["--out", str(tmp_path), "--check"]) == 1
    err = capsys.readouterr().err
    assert "objectives/is.svg, figures/objectives/gone.svg; run: python docs/generate_objectives.py" in err


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_field_and_formula_is_on_the_page(objectives_script: ModuleType, name: str) -> None:
    section = objectives_script.section(name)
    for field in dataclasses.fields(OBJECTIVES[name]):
        assert f"| `{field.name}` | {table.shown(field.default)} | {range_text(field)} | " in section
    assert "**Source:**" in section
    for paper in OBJECTIVES[name].papers:
        assert paper.markdown() in section
    assert name == "is" or "```text" in section
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert {row.replace("\\|", "").count("|") for row in rows} <= {5}


def test_a_method_that_nobody_has_seen(objectives_script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", Toy)
    section = objectives_script.section("toy")
    assert "### `toy`\n\nA weight that stops for A > 0. Paper: [On Toys](" in section
    assert "```text\nA > 0    w = 0\nelse     w = min(r, cap)\n```" in section
    assert "| `cap` | None | None or in [1, inf] | a number on two lines. |" in section
    assert "* **Inputs of w:** the ratio, the sign of A." in section
    assert "* **w is 0** in part of `inside`.\n" in section
    assert "* **Boundaries:** none; w is not r: it stops for A > 0, and at the cap.\n" in section
    assert "continuous in r; at most 1.5; 1 on-policy; w/π as π → 0 for A < 0: finite" in section
    assert "none in closed form; φ = w" in section
    assert "No settings in other frameworks are recorded for this method." in section


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dgpo", []),
        ("maspo", ["|A|", "π_old"]),
        ("dac", ["π_old"]),
        ("bapo", ["the other responses"]),
        ("gspo", ["the other tokens of the response"]),
        ("dppo_tv", ["π_old"]),
        ("drpo", ["π_old"]),
    ],
)
def test_what_w_reads_is_what_the_formulas_say(objectives_script: ModuleType, name: str, more: list[str]) -> None:
    expected = ["the ratio", "the sign of A", *more]
    assert objectives_script.reads(OBJECTIVES[name]) == ", ".join(expected)


def test_an_option_that_reads_more_is_named(objectives_script: ModuleType) -> None:
    assert objectives_script.reads(OBJECTIVES["aspo"]).endswith(
        "; with `entropy_quantile` also the entropy, the other tokens of the response"
    )
