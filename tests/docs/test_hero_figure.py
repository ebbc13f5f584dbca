"""docs/figures/hero.svg is what the classes give, and its colours can be read on white and on black."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgpo import TokenBatch, objectives

WHITE, BLACK = "#ffffff", "#0d1117"
WORDS = {"grpo": "drops", "cispo_two_sided": "holds", "maspo": "gates", "dgpo": "decays"}


def test_committed_figure_is_current(hero_script: ModuleType, root: Path, tmp_path: Path) -> None:
    pinned = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    if importlib.metadata.version("matplotlib") != pinned[1]:
        pytest.skip(f"another matplotlib than the pinned {pinned[1]} draws other bytes")
    fresh = tmp_path / "hero.svg"
    assert hero_script.main(["--check", "--out", str(fresh)]) == 1, "a missing figure is out of date"
    assert hero_script.main(["--out", str(fresh)]) == 0
    assert fresh.read_bytes() == (root / "docs" / "figures" / "hero.svg").read_bytes(), (
        "run: python docs/figures/hero.py"
    )


def test_curves_are_the_weights_of_the_classes(hero_script: ModuleType) -> None:
    """What is drawn, read back from the axes, is what the classes say of a token on its own."""
    figure = hero_script.draw()
    for axis, (sign, ratios) in zip(figure.axes, hero_script.SIDES.items(), strict=True):
        drawn = {line.get_color(): line for line in axis.get_lines()}
        for name, colour in hero_script.COLOURS.items():
            x, y = (torch.as_tensor(values, dtype=torch.float64) for values in drawn[colour].get_data())
            assert torch.equal(x, ratios)
            for index in range(0, len(x), 50):
                old = torch.tensor([[hero_script.OLD_LOGPROB]], dtype=torch.float64)
                advantage, mask = torch.tensor([sign], dtype=torch.float64), torch.tensor([[True]])
                tokens = TokenBatch(old + x[index].log(), old, advantage, mask)
                expected = objectives.make(name).weight(tokens).item()
                assert y[index].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_words_are_true(hero_script: ModuleType) -> None:
    """Beyond the clip range: 0; constant; below the ratio; and a share of the ratio that shrinks on both sides."""
    low, high = hero_script.CLIP_RANGE
    for sign, ratios in hero_script.SIDES.items():
        beyond = ratios < low if sign < 0 else ratios > high
        r = ratios[beyond]
        w = {name: by_sign[sign][beyond] for name, by_sign in hero_script.curves().items()}
        assert (w["grpo"] == 0).all()
        assert torch.allclose(w["cispo_two_sided"], torch.full_like(r, low if sign < 0 else high))
        assert (w["maspo"] < r).all()
        assert (w["dgpo"] < r).all()
        share = w["dgpo"] / r
        assert (share.diff() > 0).all() if sign < 0 else (share.diff() < 0).all(), "decays relative to the ratio"
    assert w["maspo"][-1] < w["maspo"].max(), "the gate closes"


def test_every_curve_is_named_where_it_is(hero_script: ModuleType) -> None:
    for sign in hero_script.SIDES:
        assert {name for name, *_ in hero_script.LABELS[sign]} == set(hero_script.COLOURS)
    said = " ".join(words for labels in hero_script.LABELS.values() for _, words, *_ in labels)
    for name, word in WORDS.items():
        assert f"{name.partition('_')[0].upper()} {word}" in said


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read_in_both_schemes(hero_script: ModuleType) -> None:
    """At least 4.5, as WCAG asks of text; and every colour that is drawn has a dark counterpart."""
    for colour in (hero_script.INK, hero_script.FAINT, *hero_script.COLOURS.values()):
        assert contrast(colour, WHITE) >= 4.5
        assert contrast(hero_script.DARK[colour], BLACK) >= 4.5
    text = hero_script.svg().decode()
    assert "<dc:date>" not in text
    body = text.partition("</style>")[2]
    assert set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", body)) == set(hero_script.DARK)
    assert text.count("prefers-color-scheme: dark") == 1
