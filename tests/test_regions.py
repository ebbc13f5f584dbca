"""The five regions: a partition of the valid tokens, by ratio and by the sign of A."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpo import TokenBatch
from dgpo.objectives import GRPO, IS, Boundaries
from dgpo.regions import REGIONS, regions


def region_of(ratio: float, advantage: float, eps_low: float, eps_high: float) -> str:
    if advantage < 0 and ratio < 1 - eps_low:
        return "left"
    if advantage > 0 and ratio > 1 + eps_high:
        return "right"
    if advantage > 0 and ratio < 1 - eps_low:
        return "reverse_left"
    if advantage < 0 and ratio > 1 + eps_high:
        return "reverse_right"
    return "inside"


def tokens_of(ratios: list[float], advantages: list[float], mask: list[bool]) -> TokenBatch:
    x = torch.tensor([ratios], dtype=torch.float64).log()
    advantage = torch.tensor([advantages], dtype=torch.float64)
    return TokenBatch(x - 1, torch.full_like(x, -1.0), advantage, torch.tensor([mask]))


def test_each_region_in_its_place() -> None:
    ratios = [0.5, 0.9, 1.5, 0.5, 1.1, 1.5, 0.5, 1.5]
    advantages = [-1.0, -1.0, -1.0, 2.0, 2.0, 2.0, 0.0, 0.0]
    expected = ["left", "inside", "reverse_right", "reverse_left", "inside", "right", "inside", "inside"]
    tokens = tokens_of(ratios, advantages, [True] * 8)
    found = regions(tokens, GRPO().boundaries(tokens))
    assert list(found) == list(REGIONS) == ["inside", "left", "right", "reverse_left", "reverse_right"]
    assert [name for i in range(8) for name in REGIONS if found[name][0, i]] == expected


@given(
    st.lists(
        st.tuples(st.floats(0.01, 100), st.sampled_from([-2.0, -1e-6, 0.0, 1e-6, 2.0]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([(0.2, 0.2), (0.2, 0.28), (0.0, 0.0), (0.9, 4.0), (3e-4, 4e-4)]),
)
def test_partition(drawn: list[tuple[float, float, bool]], eps: tuple[float, float]) -> None:
    """Every valid token lies in exactly one region, the one of the definition; a masked one lies in none."""
    edges = (1 - eps[0], 1 + eps[1])
    drawn = [d for d in drawn if all(abs(math.log(d[0] / edge)) > 1e-9 for edge in edges)]
    if not drawn:
        return
    ratios, advantages, mask = (list(column) for column in zip(*drawn, strict=True))
    tokens = tokens_of(ratios, advantages, mask)
    found = regions(tokens, Boundaries.at(tokens.log_ratio, math.log(edges[0]), math.log(edges[1])))
    assert torch.equal(torch.stack(list(found.values())).sum(0), torch.tensor([mask]).long())
    for i, (ratio, advantage, valid) in enumerate(drawn):
        assert [name for name in REGIONS if found[name][0, i]] == [region_of(ratio, advantage, *eps)] * valid


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_the_boundaries_belong_to_the_inside(advantage: float) -> None:
    old = torch.zeros(1, 2, dtype=torch.float64)
    x = torch.tensor([[math.log1p(-0.2), math.log1p(0.2)]], dtype=torch.float64)
    tokens = TokenBatch(x, old, torch.tensor([advantage]), torch.ones(1, 2, dtype=torch.bool))
    found = regions(tokens, GRPO().boundaries(tokens))
    assert found["inside"].tolist() == [[True, True]]


def test_regions_carry_no_gradient_and_see_the_clamped_ratio() -> None:
    x = torch.tensor([[-300.0, 300.0]], requires_grad=True)
    tokens = TokenBatch(x, torch.zeros(1, 2), torch.tensor([-1.0]), torch.ones(1, 2, dtype=torch.bool))
    found = regions(tokens, GRPO().boundaries(tokens))
    assert found["left"].tolist() == [[True, False]]
    assert found["reverse_right"].tolist() == [[False, True]]
    assert {(mask.dtype, mask.requires_grad) for mask in found.values()} == {(torch.bool, False)}


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8))
def test_without_boundaries_all_tokens_are_inside(x: list[float]) -> None:
    new = torch.tensor([x], dtype=torch.float64)
    advantage = torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0).unsqueeze(0)
    tokens = TokenBatch(new, torch.zeros_like(new), advantage, torch.ones_like(new, dtype=torch.bool))
    assert regions(tokens, IS().boundaries(tokens))["inside"].all()


def test_boundaries_may_differ_by_token_and_be_capped_for_some() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, -0.5]])
    advantage = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    tokens = TokenBatch(x, torch.zeros(1, 4), advantage, torch.tensor([[True, True, True, True]]))
    high = torch.tensor([[0.4, 0.6, 1.0, 1.0]])
    low = torch.tensor([[-1.0, -1.0, -1.0, -0.4]])
    bounds = Boundaries(tokens.log_ratio, low, high)
    found = regions(tokens, bounds)
    assert [name for t in range(4) for name in REGIONS if found[name][0, t]] == ["right", "inside", "inside", "left"]
    capped = bounds.capped(tokens.advantage < 0, math.exp(0.55))
    torch.testing.assert_close(capped.high, torch.tensor([[0.4, 0.55, 0.55, 0.55]]))
    assert bounds.capped(tokens.advantage < 0, None) is bounds
