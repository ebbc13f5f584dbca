"""How often the intervals over seeds hold the truth, on simulated scores of three shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dgpo.comparison import statistics

pytest.importorskip("scipy", reason="statistics need scipy: the extra train or eval")

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(0.6, 0.1, size).clip(0, 1), 0.6),
    # most runs solve nearly everything, some do not
    "skewed": (lambda rng, size: rng.beta(8, 0.8, size), 8 / 8.8),
    # three runs in ten collapse
    "two peaks": (
        lambda rng, size: np.where(rng.random(size) < 0.3, rng.uniform(0, 0.2, size), rng.uniform(0.7, 0.9, size)),
        0.3 * 0.1 + 0.7 * 0.8,
    ),
}


def coverage(shape: str, tasks: int, seeds: int, trials: int) -> dict[str, float]:
    """Share of trials in which each 95 % interval holds the truth; both arms are alike."""
    draw, mean = SHAPES[shape]
    rng = np.random.default_rng([tasks, seeds])
    middle = np.sort(draw(rng, (1, 200_001))[0])
    quarter = middle.size // 4
    iqm = float(middle[quarter:-quarter].mean())
    held = dict.fromkeys(("mean", "IQM", "improvement", "improvement, unpaired", "difference"), 0)
    for trial in range(trials):
        x, y = draw(rng, (tasks, seeds)), draw(rng, (tasks, seeds))
        for name, truth, found in (
            ("mean", mean, statistics.mean(x, resamples=1_000, seed=trial)),
            ("IQM", iqm, statistics.interquartile_mean(x, resamples=1_000, seed=trial)),
            ("improvement", 0.5, statistics.probability_of_improvement(x, y, paired=True, resamples=1_000, seed=trial)),
            (
                "improvement, unpaired",
                0.5,
                statistics.probability_of_improvement(x, y, paired=False, resamples=1_000, seed=trial),
            ),
            ("difference", 0.0, statistics.paired_difference(x, y, resamples=1_000, seed=trial)),
        ):
            held[name] += found.low <= truth <= found.high
    return {name: count / trials for name, count in held.items()}


def test_three_seeds_are_too_few_and_sixteen_are_enough() -> None:
    """What `coverage_note` says, for the difference. The standard error of a share of 200 trials is 0.015 to 0.03."""
    rng = np.random.default_rng(0)
    held = {}
    for seeds in (3, 16):
        pairs = rng.normal(0.6, 0.1, (200, 2, 1, seeds)).clip(0, 1)
        found = [statistics.paired_difference(x, y, resamples=400, seed=i) for i, (x, y) in enumerate(pairs)]
        held[seeds] = np.mean([one.low <= 0 <= one.high for one in found])
    assert held[3] < 0.86
    assert 0.9 < held[16] < 0.99


@pytest.mark.soak
def test_the_plain_percentile_interval_of_eight_seeds_is_too_narrow() -> None:
    """Why the level is expanded."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.6, 0.1, (2_000, 8))
    low, high = np.quantile(scores[:, rng.integers(0, 8, (1_000, 8))].mean(-1), (0.025, 0.975), axis=1)
    held = float(np.mean((low <= 0.6) & (high >= 0.6)))
    print(f"normal, 8 seeds, plain percentile interval of the mean: {held:.3f}")
    assert 0.87 < held < 0.91


@pytest.mark.soak
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("tasks", [1, 3])
def test_coverage_by_seeds(shape: str, tasks: int) -> None:
    for seeds, least in ((3, 0.55), (5, 0.79), (8, 0.89), (16, 0.9)):
        found = coverage(shape, tasks, seeds, 600)
        print(
            f"{shape}, {tasks} tasks, {seeds} seeds:", ", ".join(f"{name} {held:.3f}" for name, held in found.items())
        )
        assert min(found.values()) > least, (seeds, found)
        if tasks == 1 and seeds == 3:
            assert found["mean"] < 0.8, found


@pytest.mark.soak
@pytest.mark.parametrize(("seeds", "problems"), [(5, 50), (8, 50), (16, 10), (16, 50), (16, 300)])
@pytest.mark.parametrize(("of_seeds", "of_problems", "of_both"), [(0.05, 0.1, 0.2), (0.02, 0.02, 0.3), (0.05, 0, 0.05)])
def test_coverage_over_seeds_and_problems(
    seeds: int, problems: int, of_seeds: float, of_problems: float, of_both: float
) -> None:
    """Normal effects of seeds, of problems and of their combination, with these standard deviations."""
    rng = np.random.default_rng([seeds, problems])
    held = 0
    for trial in range(300):
        d = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_problems, (1, problems))
        d = (d + rng.normal(0, of_both, (seeds, problems))).clip(-1, 1)
        found = statistics.paired_difference_over_problems(
            [d.clip(0, 1)], [(-d).clip(0, 1)], resamples=1_000, seed=trial
        )
        held += found.low <= 0 <= found.high
    print(f"{seeds} seeds, {problems} problems, {of_seeds}, {of_problems}, {of_both}: {held / 300:.3f}")
    assert held / 300 > 0.91


@pytest.mark.soak
@pytest.mark.parametrize(("seeds", "comparisons"), [(8, 1), (8, 3), (12, 3), (16, 1), (16, 18)])
def test_the_sign_flip_test_has_nearly_the_power_of_the_t_test(seeds: int, comparisons: int) -> None:
    rng = np.random.default_rng([seeds, comparisons])
    delta = statistics.smallest_difference(seeds, 0.05, comparisons=comparisons, correlation=0.5)
    # both halves of the variance of a difference, which is that of one arm at this correlation
    x = 0.5 + delta / 2 + rng.normal(0, 0.05 / 2**0.5, (2_000, seeds))
    y = 0.5 - delta / 2 + rng.normal(0, 0.05 / 2**0.5, (2_000, seeds))
    found = [statistics.paired_p_value([a], [b]) <= 0.05 / comparisons for a, b in zip(x, y, strict=True)]
    print(f"{seeds} seeds, {comparisons} comparisons: {np.mean(found):.3f}")
    assert 0.7 < np.mean(found) < 0.85
