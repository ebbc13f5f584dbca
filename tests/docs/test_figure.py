"""docs/figures/weights.svg is what the classes give."""

from __future__ import annotations

import importlib.metadata
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dgpo import TokenBatch, objectives


def pinned(root: Path, package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None, f"constraints.txt does not pin {package}"
    return found.group(1)


def weight_at(name: str, log_ratio: float, advantage: float, old_logprob: float) -> float:
    """w of one token on its own, the way a user would ask."""
    logprob = torch.tensor([[old_logprob + log_ratio]], dtype=torch.float64)
    old = torch.tensor([[old_logprob]], dtype=torch.float64)
    tokens = TokenBatch(logprob, old, torch.tensor([advantage], dtype=torch.float64), torch.tensor([[True]]))
    return objectives.make(name).weight(tokens).item()


def test_committed_figure_is_current(weights_script: ModuleType, root: Path, tmp_path: Path) -> None:
    version = importlib.metadata.version("matplotlib")
    if version != pinned(root, "matplotlib"):
        pytest.skip(f"matplotlib {version} draws other bytes than the pinned {pinned(root, 'matplotlib')}")
    fresh = tmp_path / "weights.svg"
    assert weights_script.main(["--out", str(fresh)]) == 0
    committed = root / "docs" / "figures" / "weights.svg"
    assert fresh.read_bytes() == committed.read_bytes(), "run: python docs/figures/weights.py"


def test_check_tells_a_stale_figure(
    weights_script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "weights.svg"
    assert weights_script.main(["--check", "--out", str(target)]) == 1, "a missing figure is out of date"
    assert weights_script.main(["--out", str(target)]) == 0
    assert weights_script.main(["--check", "--out", str(target)]) == 0
    written = target.read_bytes()
    target.write_bytes(written + b"\n")
    assert weights_script.main(["--check", "--out", str(target)]) == 1
    assert "docs/figures/weights.py" in capsys.readouterr().err
    assert target.read_bytes() == written + b"\n", "--check must write nothing"


def test_one_curve_per_registered_method(weights_script: ModuleType) -> None:
    curves = weights_script.curves()
    assert list(curves) == list(objectives.OBJECTIVES)
    for by_sign in curves.values():
        assert set(by_sign) == {-1.0, 1.0}


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_curves_are_the_weights_of_the_classes(weights_script: ModuleType, name: str) -> None:
    by_sign = weights_script.curves()[name]
    for index in range(0, len(weights_script.LOG_RATIO), 40):
        log_ratio = weights_script.LOG_RATIO[index].item()
        for sign, drawn in by_sign.items():
            expected = weight_at(name, log_ratio, sign, weights_script.OLD_LOGPROB)
            assert drawn[index].item() == pytest.approx(expected, rel=1e-12, abs=0.0)


def test_panels_show_both_bases_and_both_signs(weights_script: ModuleType) -> None:
    """What is drawn, read back from the axes: w in the first row, w/r in the second; A < 0 left, A > 0 right."""
    figure = weights_script.draw()
    curves = weights_script.curves()
    ratio = weights_script.LOG_RATIO.exp()
    for index, axis in enumerate(figure.axes):
        sign, basis = (-1.0, 1.0)[index % 2], (torch.ones_like(ratio), ratio)[index // 2]
        lines = {line.get_label(): line for line in axis.get_lines() if line.get_label() in curves}
        assert list(lines) == list(curves)
        for name, line in lines.items():
            x, y = (torch.as_tensor(values, dtype=torch.float64) for values in line.get_data())
            torch.testing.assert_close(x, ratio, rtol=1e-15, atol=0)
            expected = curves[name][sign] / basis
            drawn = expected >= weights_script.LOWEST
            torch.testing.assert_close(y[drawn], expected[drawn], rtol=1e-12, atol=0)
            assert (y[expected <= 0] == weights_script.ZERO).all(), "a weight of 0 is drawn on the line labelled 0"
            hidden = (expected > 0) & ~drawn
            assert y[hidden].isnan().all(), "a positive weight below the scale must not look like another value"


def test_axis_ends_where_the_probability_is_one(weights_script: ModuleType) -> None:
    assert weights_script.LOG_RATIO.max().item() + weights_script.OLD_LOGPROB == pytest.approx(0.0)
    low, high = weights_script.clip_range("dgpo")
    assert weights_script.LOG_RATIO.min().item() < math.log(low) < math.log(high)
    default = objectives.make("dgpo")
    assert (low, high) == pytest.approx((1 - default.eps_low, 1 + default.eps_high))


def test_svg_is_the_same_twice(weights_script: ModuleType) -> None:
    first, second = weights_script.svg(), weights_script.svg()
    assert first == second
    text = first.decode()
    assert "<dc:date>" not in text
    for name in objectives.OBJECTIVES:
        assert f">{name}</text>" in text, f"the legend does not name {name}"
