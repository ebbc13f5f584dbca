"""Outcomes of a comparison that was never run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dgpo.comparison import Outcome

Simulate = Callable[..., list[Outcome]]


@pytest.fixture
def simulate() -> Simulate:
    """A function: runs of arms that gain so much over 40 steps, on problems of their own noise.

    Both arms of a seed share half of their variance.
    """

    def simulate(
        gains: dict[str, float],
        seeds: Sequence[int] = range(8),
        tasks: Sequence[str] = ("addition",),
        problems: int = 0,
    ) -> list[Outcome]:
        made = []
        for place, task in enumerate(tasks):
            for seed in seeds:
                rng = np.random.default_rng([place, seed])
                shared = rng.normal(0, 0.03)
                for arm, gain in gains.items():
                    final = float(np.clip(0.2 + gain + shared + rng.normal(0, 0.03), 0, 1))
                    of_problem = np.clip(final + rng.normal(0, 0.1, problems), 0, 1)
                    scores = {f"p{i}": float(score) for i, score in enumerate(of_problem)}
                    made.append(Outcome(arm, seed, task, (0, 20, 40), (0.2, 0.2 + gain / 2, final), scores))
        return made

    return simulate
