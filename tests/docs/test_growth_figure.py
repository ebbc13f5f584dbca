"""docs/figures/growth.svg is what was measured, with the slope of each line."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import ModuleType

import pytest

NAMES = ("GRPOTrainer (TRL)", "DGPOTrainer, before", "DGPOTrainer")
TOKENS = (2000.0, 4000.0, 16_000.0)
COMMITTED = Path(__file__).parents[2] / "docs" / "figures" / "growth.svg"


def document() -> dict:
    """Seconds that grow as tokens to the power of 1.5, 1 and 0.5, over three rounds with one outlier."""

    def row(tokens: float) -> dict:
        seconds = {
            name: [1e-3 * tokens**power, 99.0, 1e-4 * tokens**power]
            for name, power in zip(NAMES, (1.5, 1, 0.5), strict=True)
        }
        return {"tokens": tokens, "seconds": seconds}

    spread = [{"sigma": sigma, **row(8192.0)} for sigma in (0.0, 0.8)]
    return {"at": {"sigma": 0.8, "tokens": 8192}, "by_tokens": [row(x) for x in TOKENS], "by_spread": spread}


def test_the_slope_is_the_exponent(growth_script: ModuleType) -> None:
    medians = growth_script.medians(document()["by_tokens"])
    slopes = [growth_script.slope(list(TOKENS), medians[name]) for name in NAMES[1:]]
    assert slopes == pytest.approx([1.0, 0.5], abs=1e-9)


def test_lines_and_their_slopes_are_drawn(growth_script: ModuleType) -> None:
    growth, spread = growth_script.draw(document()).axes
    labels = [text.get_text() for text in growth.get_legend().get_texts()]
    assert labels[1:] == [f"{NAMES[1]}: slope 1.00", f"{NAMES[2]}: slope 0.50"]
    # microseconds per token
    assert spread.get_lines()[1].get_ydata() == pytest.approx([1000.0, 1000.0])


def test_committed_figure_is_current(growth_script: ModuleType, root: Path) -> None:
    if not growth_script.RESULTS.is_file():
        assert not COMMITTED.is_file(), "a figure of what was not measured"
        return
    pinned = (root / "constraints.txt").read_text(encoding="utf-8").split("matplotlib==")[1].split()[0]
    version = importlib.metadata.version("matplotlib")
    if version != pinned:
        pytest.skip(f"matplotlib {version} draws other bytes than the pinned {pinned}")
    measured = json.loads(growth_script.RESULTS.read_text(encoding="utf-8"))
    drawn = growth_script.drawing.svg(lambda: growth_script.draw(measured))
    assert COMMITTED.read_bytes() == drawn, "run: python docs/figures/growth.py"
