"""The noise model of the rules: coverage of its intervals, states that do not flicker, change points."""

from __future__ import annotations

import itertools
import random

import pytest

from dgpo.diagnostics.doctor import noise
from dgpo.diagnostics.doctor.noise import above, below, changed, mean, recent, share, start


def autoregressive(draw, length, correlation=0.0):
    value, values = 0.0, []
    for _ in range(length):
        value = correlation * value + draw.gauss(0, 1)
        values.append(value)
    return values


def test_by_hand():
    """Blocks 1, 3, 2: differences 2 and -1, variance of the mean 5 / (2 · 2 · 3), t = 6.965 with 2 degrees."""
    found = mean([1.0, 3.0, 2.0])
    assert found.value == pytest.approx(2)
    assert found.high - 2 == pytest.approx(6.965 * (5 / 12) ** 0.5)
    assert 2 - found.low == pytest.approx(found.high - 2)
    assert str(mean([0.5] * 20)) == "0.5 (0.5 to 0.5)"
    # 17 points in 8 blocks: two of each, three in the last
    values = [float(i**2 % 11) for i in range(17)]
    blocks = [sum(values[17 * i // 8 : 17 * (i + 1) // 8]) / (17 * (i + 1) // 8 - 17 * i // 8) for i in range(8)]
    variance = sum((b - a) ** 2 for a, b in itertools.pairwise(blocks)) / (2 * 7 * 8)
    assert mean(values).high - mean(values).value == pytest.approx(2.998 * variance**0.5)


def test_one_point_says_nothing():
    assert mean([1.0]).low == -float("inf")
    assert not above(recent([5.0]), 1.0, 1)
    with pytest.raises(ValueError, match="values is empty"):
        mean([])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_coverage(correlation):
    """Of 300 autoregressive series of 400 points, about 98 % of the intervals hold the mean."""
    draw, hits = random.Random(0), 0
    for _ in range(300):
        found = mean(autoregressive(draw, 400, correlation))
        hits += found.low <= 0 <= found.high
    assert 0.95 <= hits / 300 <= 1.0


def test_a_trend_hardly_widens_it():
    found = mean([i / 799 for i in range(800)])
    assert found.value == pytest.approx(0.5)
    assert found.high - found.low < 0.25


@pytest.mark.parametrize("level", [recent, start, share])
def test_a_level_is_that_of_the_log_so_far(level):
    """After n points it does not depend on what comes later."""
    draw = random.Random(1)
    values = [float(draw.random() < 0.5) for _ in range(80)]
    whole = level(values)
    for n in (1, 2, 9, 10, 31, 60):
        part = level(values[:n])
        assert float(part.value[-1]) == pytest.approx(float(whole.value[n - 1]), abs=1e-9)
        assert float(part.half[-1]) == pytest.approx(float(whole.half[n - 1]), abs=1e-9)


def test_a_state_at_the_limit_does_not_flicker():
    """300 points of noise about the limit itself: a threshold on the last third changes its mind again and again."""
    draw, kept, naive = random.Random(2), 0, 0
    for _ in range(20):
        values = autoregressive(draw, 300)
        level = recent(values)
        states = [bool(above(noise.Level(value=level.value[:n], half=level.half[:n]), 0.0)) for n in range(20, 301)]
        plain = [float(level.value[n - 1]) > 0 for n in range(20, 301)]
        kept += sum(a != b for a, b in itertools.pairwise(states))
        naive += sum(a != b for a, b in itertools.pairwise(plain))
    assert kept <= 20  # once per series at most, on average
    assert naive > 10 * max(kept, 1)


def test_a_state_ends_with_what_it_says():
    draw = random.Random(3)
    values = [draw.gauss(1.0 if i < 100 else -1.0, 0.5) for i in range(300)]
    assert not above(recent(values), 0.0)
    assert below(recent(values), 0.0).index > 100
    assert above(recent(values[:100]), 0.0).index < 20


def test_equal_values_are_at_their_limit():
    assert above(recent([0.3] * 12), 0.3)
    assert not above(recent([0.3] * 12), 0.31)


def test_a_share_has_the_error_of_a_binomial():
    """Ten groups without spread in a row are less than certain; of ten groups per point they are."""
    assert not above(share([1.0] * 10), 0.8)
    assert above(share([1.0] * 10, groups=10), 0.8)
    assert above(share([1.0] * 60), 0.8)


@pytest.mark.parametrize("at", [10, 50, 90])
def test_where_a_level_changes(at):
    draw = random.Random(at)
    values = [draw.gauss(0.0 if i < at else 3.0, 1.0) for i in range(100)]
    assert abs(changed(values, up=True) - at) <= 3
    assert changed(values, up=False) == 0
    assert changed([draw.gauss(0, 1) for _ in range(100)], up=True) == 0
    assert changed([1.0, 2.0], up=True) == 0
