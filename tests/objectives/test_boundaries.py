"""Where the boundaries of a hard clip are exactly, and those of DPPO-KL, which has no closed form.

That between its boundaries a weight is the ratio that it compares is a check of `dgpo.testing`, for every method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpo import objectives
from dgpo.objectives import DPPOKL
from dgpo.regions import regions
from dgpo.testing.batches import HALF, calibrated, column, linspace
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch


def spread(sign: float, *, old: float = HALF) -> TokenBatch:
    """Responses of one token with ratios up to e^±4, in steps that no boundary meets."""
    return column(linspace(-4, 4, 4001) + 1e-4 / math.pi, sign, old)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("grpo", {}),
        ("grpo", {"dual_clip": 3}),
        ("grpo", {"eps_low": 0.3, "dual_clip": 1.1}),
        ("dac", {}),
        ("dac", {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3}),
        ("bapo", {}),
        ("bapo", {"c_low": 0.7, "c_high": 1.3, "dual_clip": 3}),
        ("bapo_algorithm1", {}),
        ("gspo", {"eps_low": 0.2, "eps_high": 0.28}),
        ("gmpo", {}),
        ("dppo_tv", {}),
        ("dppo_tv", {"delta_low": 0.1, "ratio_cap": math.inf}),
        ("dppo_kl", {}),
        ("dppo_kl", {"delta_low": 0.01, "delta_high": 0.2, "ratio_cap": 1e4}),
    ],
)
def test_beyond_its_boundaries_a_hard_clip_is_0(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    """Left and right, and nowhere else but above a dual clip: so the boundaries are the exact ones."""
    objective = calibrated(objectives.make(name, **fields))
    dual = getattr(objective, "dual_clip", None)
    for tokens in [spread(-1.0), spread(1.0), spread(-1.0, old=-5), *(make_batch(seed=i).tokens() for i in range(5))]:
        bounds = objective.boundaries(tokens)
        where, zero = regions(tokens, bounds), (objective.weight(tokens) == 0) & (tokens.advantage != 0) & tokens.mask
        above = (
            (tokens.advantage < 0) & tokens.mask & (bounds.log_ratio > (math.inf if dual is None else math.log(dual)))
        )
        capped = bounds.log_ratio >= math.log(getattr(objective, "ratio_cap", math.inf))
        assert torch.equal(zero | capped, where["left"] | where["right"] | above | capped)


@pytest.mark.parametrize("old", [-1e-3, -0.1, -1.0, -5.0, -12.0])
@pytest.mark.parametrize("delta", [1e-3, 0.05, 2.0])
def test_the_boundaries_of_dppo_kl_are_where_its_divergence_is_delta(old: float, delta: float) -> None:
    tokens = column(torch.zeros(1, dtype=torch.float64), 1.0, old)
    _, low, high = DPPOKL(delta_low=delta, delta_high=delta, ratio_cap=math.inf).boundaries(tokens)
    q = math.exp(old)

    def divergence(x: float) -> float:
        return -q * x + (1 - q) * (math.log1p(-q) - math.log1p(-q * math.exp(x)))

    for x, end in ((low.item(), -MAX_LOG_RATIO), (high.item(), -old - 1e-9)):
        if abs(x) <= abs(end):
            assert divergence(x) == pytest.approx(delta, rel=1e-6)
        else:  # no ratio that the token can have is that far off
            assert divergence(end) < delta


def test_a_delta_of_dppo_kl_that_rounds_to_0_ends_at_ratio_1() -> None:
    tokens = TokenBatch(torch.zeros(1, 1) - 1, torch.zeros(1, 1) - 1, torch.ones(1), torch.ones(1, 1))
    _, low, high = DPPOKL(delta_low=1e-50, delta_high=1e-50).boundaries(tokens)
    assert (low.item(), high.item()) == (0, 0)


def test_an_unbounded_trust_region_of_dppo_kl_has_no_boundary() -> None:
    """A token so rare that 20 nats do not reach delta, and an infinite delta."""
    rare = DPPOKL().boundaries(column(torch.zeros(1, dtype=torch.float64), 1.0, -25.0))
    assert rare.low.item() == -math.inf
    free = DPPOKL(delta_low=math.inf, delta_high=math.inf, ratio_cap=math.inf).boundaries(spread(1.0))
    assert free.low.isneginf().all()
    assert free.high.isposinf().all()
