"""The weight over a grid of ratios: that of any batch with these tokens, for every level of method."""

from __future__ import annotations

import math

import pytest
import torch

from dgpo import TokenBatch, objectives
from dgpo.objectives.curves import weight_curve
from dgpo.regions import regions

GRID = torch.linspace(-2, 2, 81, dtype=torch.float64)
OLD = -1.5
SIGNS = (-1.0, 1.0)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_token_among_others_has_the_weight_of_the_curve(name: str, sign: float) -> None:
    """Token level: whatever else is in its response. The objective as it is: a grid calibrates nothing."""
    objective = objectives.make(name)
    curve = weight_curve(objective, GRID, advantage=sign, old_logprob=OLD)
    assert curve.weight.shape == GRID.shape
    assert torch.equal(curve.possible, GRID <= -OLD)
    if "response" in objective.reads:
        return
    old = torch.full((1, len(GRID)), OLD, dtype=torch.float64)
    tokens = TokenBatch(old + GRID, old, torch.full((1,), sign), old < 0, entropy=-old)
    torch.testing.assert_close(curve.weight, objective.weight(tokens)[0], rtol=1e-12, atol=0)
    for found, expected in zip(curve.boundaries, objective.boundaries(tokens), strict=True):
        torch.testing.assert_close(found[:, 0], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("name", ["gspo", "gmpo"])
def test_a_response_of_one_ratio_has_the_weight_of_the_curve(name: str, sign: float) -> None:
    """Where a mean over the response is compared, its length does not matter."""
    objective = objectives.make(name)
    curve = weight_curve(objective, GRID, advantage=sign, old_logprob=OLD)
    old = torch.full((len(GRID), 3), OLD, dtype=torch.float64)
    mask = torch.ones_like(old, dtype=torch.bool)
    tokens = TokenBatch(old + GRID.unsqueeze(1), old, torch.full((len(GRID),), sign), mask)
    torch.testing.assert_close(objective.weight(tokens), curve.weight.unsqueeze(1).expand(-1, 3), rtol=1e-12, atol=0)
    torch.testing.assert_close(curve.boundaries.log_ratio[:, 0], GRID)


def test_a_calibrated_objective_is_drawn_with_its_bounds() -> None:
    old = torch.full((6, 4), OLD, dtype=torch.float64)
    drift = torch.linspace(-0.9, 0.9, 24, dtype=torch.float64).view(6, 4)
    signs = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    batch = TokenBatch(old + drift, old, signs, torch.ones_like(old, dtype=torch.bool))
    plain = objectives.make("bapo")
    calibrated = plain.calibrate(batch)
    one, other = (weight_curve(o, GRID, advantage=-1.0, old_logprob=OLD).boundaries for o in (plain, calibrated))
    expected = calibrated.boundaries(batch)
    assert other.low[0].item() == pytest.approx(expected.low[signs < 0][0, 0].item())
    assert not torch.equal(one.low, other.low) or not torch.equal(one.high, other.high)


def test_boundaries_give_the_regions_of_the_curve() -> None:
    curve = weight_curve(objectives.make("grpo"), [math.log(r) for r in (0.5, 1.0, 1.5)], advantage=1.0, old_logprob=-2)
    where = regions(curve.tokens, curve.boundaries)
    assert [next(name for name, mask in where.items() if mask[i, 0]) for i in range(3)] == [
        "reverse_left",
        "inside",
        "right",
    ]
    assert curve.weight.tolist() == pytest.approx([0.5, 1.0, 0.0])
