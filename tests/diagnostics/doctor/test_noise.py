"""Intervals of means over a log, against their coverage on series whose mean is known."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from dgpo.diagnostics.doctor.noise import BLOCKS, mean


def test_by_hand():
    """Blocks 1, 3, 2: differences 2 and -1, variance of the mean 5 / (2 · 2 · 3), t = 4.303 with 2 degrees."""
    found = mean([1.0, 3.0, 2.0])
    assert found.value == 2
    assert found.high - 2 == pytest.approx(4.303 * (5 / 12) ** 0.5)
    assert 2 - found.low == pytest.approx(found.high - 2)
    assert str(mean([0.5] * 20)) == "0.5 (0.5 to 0.5)"


def test_one_point_says_nothing():
    assert mean([1.0]).low == -float("inf")
    with pytest.raises(ValueError, match="values is empty"):
        mean([])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_coverage(correlation):
    """Of 400 autoregressive series of 400 points, about 95 % of the intervals hold the mean."""
    draw, hits = random.Random(0), 0
    for _ in range(400):
        value, values = 0.0, []
        for _ in range(400):
            value = correlation * value + draw.gauss(0, 1)
            values.append(value)
        found = mean(values)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_trend_hardly_widens_it():
    found = mean([i / 799 for i in range(800)])
    assert found.value == pytest.approx(fmean([0, 1]))
    assert found.high - found.low < 0.2
    assert BLOCKS == 8
