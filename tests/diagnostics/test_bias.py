"""Bias token by token, its bounds, and the gradient of a real model against brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dgpo import TokenBatch, objectives
from dgpo.diagnostics.bias import pointwise_bias, power_bias
from dgpo.objectives import CEGPPO, DGPO, GPPO, GRPO, IS, OBJECTIVES, Objective
from dgpo.regions import REGIONS, regions

INF = math.inf
LO, HI = 0.8, 1.2
LEFT, RIGHT = st.floats(1e-6, 1 - 1e-6), st.floats(1 + 1e-6, 1e6)
N, M = st.one_of(st.just(0.0), st.floats(0.01, 6)), st.floats(1, 10)
SLACK = 1e-12


def bias_of(objective: Objective, ratio: float, advantage: float) -> float:
    """|w - r| of one token, from the class."""
    tokens = TokenBatch(
        torch.tensor([[math.log(ratio)]], dtype=torch.float64),
        torch.zeros(1, 1).double(),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )
    return (objective.weight(tokens) - tokens.ratio).abs().item()


# --- the bounds -------------------------------------------------------------------------------------------------------


@given(u=LEFT, n=N)
def test_closed_forms_on_the_left_are_those_of_the_classes(u: float, n: float) -> None:
    for objective, form in (
        (DGPO(n=n), power_bias(u, n + 1)),
        (GPPO(), power_bias(u, 0.0)),
        (GRPO(), power_bias(u, INF)),
        (CEGPPO(beta1=0.75), power_bias(u, 0.0, scale=0.75)),
    ):
        assert bias_of(objective, LO * u, -1.0) / LO == pytest.approx(form, rel=1e-9, abs=1e-12)
    assert power_bias(u, n + 1) == pytest.approx(u * (1 - u**n), rel=1e-9, abs=1e-15)
    assert power_bias(u, INF) == u
    assert power_bias(u, 0.0) == 1 - u


@given(v=RIGHT, m=M)
def test_closed_forms_on_the_right_are_those_of_the_classes(v: float, m: float) -> None:
    for objective, form in (
        (DGPO(m=m), power_bias(v, 1 - 1 / m)),
        (GPPO(), power_bias(v, 0.0)),
        (GRPO(), power_bias(v, -INF)),
        (CEGPPO(beta2=0.5), power_bias(v, 0.0, scale=0.5)),
    ):
        assert bias_of(objective, HI * v, 1.0) / HI == pytest.approx(form, rel=1e-6, abs=1e-12)
    assert power_bias(v, 1 - 1 / m) == pytest.approx(v * (1 - v ** (-1 / m)), rel=1e-6, abs=1e-12)


@given(u=LEFT, n=N)
def test_left_never_more_than_a_hard_clip(u: float, n: float) -> None:
    assert power_bias(u, n + 1) <= power_bias(u, INF) + SLACK


@given(v=RIGHT, m=M)
def test_right_never_more_than_a_hard_clip_or_a_constant_weight(v: float, m: float) -> None:
    dgpo = power_bias(v, 1 - 1 / m)
    assert dgpo <= power_bias(v, -INF) * (1 + SLACK)
    assert dgpo <= power_bias(v, 0.0) * (1 + SLACK) + SLACK


@given(v=RIGHT)
def test_right_at_m_1_is_a_constant_weight(v: float) -> None:
    assert power_bias(v, 0.0) == pytest.approx(v - 1)
    assert bias_of(DGPO(m=1), HI * v, 1.0) == pytest.approx(bias_of(GPPO(), HI * v, 1.0))


@given(u=LEFT, n=st.floats(0.01, 1))
def test_left_up_to_n_1_never_more_than_a_constant_weight(u: float, n: float) -> None:
    assert power_bias(u, n + 1) <= power_bias(u, 0.0) + SLACK


def threshold(n: float) -> float:
    """The root of u + u² + … + uⁿ = 1, for real n of 1 - 2u + u^(n+1) = 0 in (1/2, 1): by bisection."""
    low, high = 0.5, 1.0 - 1e-9
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - 2 * middle + middle ** (n + 1) > 0 else (low, middle)
    return low


@given(u=LEFT, n=st.floats(1.2, 6))
def test_left_beyond_n_1_only_below_a_threshold(u: float, n: float) -> None:
    edge = threshold(n)
    assert 0.5 < edge < 1
    if u < edge - 1e-6:
        assert power_bias(u, n + 1) <= power_bias(u, 0.0) + SLACK
    elif edge + 1e-6 < u < 1 - 1e-6:
        assert power_bias(u, n + 1) >= power_bias(u, 0.0) - SLACK


def test_the_thresholds_that_the_page_names() -> None:
    assert threshold(2) == pytest.approx((math.sqrt(5) - 1) / 2)
    assert threshold(3) == pytest.approx(0.5437, abs=5e-5)
    assert threshold(60) == pytest.approx(0.5, abs=1e-6)


@given(n=st.floats(0.05, 8))
def test_the_largest_bias_on_the_left(n: float) -> None:
    """u(1 - uⁿ) peaks at u = (n + 1)^(-1/n), with n (n + 1)^(-1 - 1/n)."""
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    highest = power_bias(u, n + 1).max().item()
    assert highest == pytest.approx(n * (n + 1) ** (-1 - 1 / n), rel=1e-6)
    assert u[power_bias(u, n + 1).argmax()].item() == pytest.approx((n + 1) ** (-1 / n), abs=1e-4)


# --- token by token ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pointwise_bias_is_the_sum_over_tokens(name: str, make_batch: Callable[..., Any]) -> None:
    batch = make_batch(spread=0.9, seed=3)
    tokens, norm = batch.tokens(), torch.rand(batch.mask.shape, dtype=torch.float64)
    objective = objectives.make(name).calibrate(tokens)
    found = pointwise_bias(tokens, name, norm=norm)
    w, r = objective.weight(tokens), tokens.ratio
    where = regions(tokens, objective.boundaries(tokens))
    total = kept = 0.0
    masses = {}
    for region in REGIONS:
        part = found.regions[region]
        gaps, mass, whole = [], 0.0, 0.0
        for i, t in where[region].nonzero().tolist():
            gap = abs(w[i, t] - r[i, t]).item()
            gaps.append(gap)
            mass += abs(tokens.advantage[i, t].item()) * gap * norm[i, t].item()
            whole += abs(tokens.advantage[i, t].item()) * r[i, t].item() * norm[i, t].item()
        assert part.tokens == len(gaps)
        assert part.mean == pytest.approx(sum(gaps) / len(gaps) if gaps else 0.0)
        assert part.mass == pytest.approx(mass)
        assert part.relative == pytest.approx(mass / whole if whole else 0.0)
        masses[region] = mass
        total, kept = total + mass, kept + whole
    assert found.relative == pytest.approx(total / kept)
    for region, mass in masses.items():
        assert found.regions[region].share == pytest.approx(mass / total if total else 0.0)


def test_the_reference_has_no_pointwise_bias(make_batch: Callable[..., Any]) -> None:
    found = pointwise_bias(make_batch().tokens(), IS())
    assert found.relative == 0.0
    assert all(part.mass == part.mean == part.share == 0.0 for part in found.regions.values())


def test_dgpo_is_biased_beyond_its_boundaries_only(make_batch: Callable[..., Any]) -> None:
    found = pointwise_bias(make_batch(spread=1.0).tokens(), "dgpo")
    assert found.regions["left"].mass > 0
    assert found.regions["right"].mass > 0
    for region in ("inside", "reverse_left", "reverse_right"):
        assert found.regions[region].mass == pytest.approx(0, abs=1e-12)


def test_empty_and_masked_batches_are_zeros() -> None:
    tokens = TokenBatch(torch.randn(2, 3), torch.randn(2, 3), torch.ones(2), torch.zeros(2, 3, dtype=torch.bool))
    found = pointwise_bias(tokens, "grpo")
    assert found.relative == 0.0
    assert all(part.tokens == 0 for part in found.regions.values())


def test_a_norm_of_another_shape_is_refused(make_batch: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"norm has shape \(3,\)"):
        pointwise_bias(make_batch().tokens(), "dgpo", norm=torch.ones(3))
