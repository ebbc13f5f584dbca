"""FIPO: the closed form of one token, and the future of a token in a response."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import INF, Method, by_region, clipped

from dgpo import TokenBatch, objectives
from dgpo.objectives import FIPO


def fipo_form(
    x: Any,
    q: Any,
    sign: int,
    eps_low: Any,
    eps_high: Any,
    dual_clip: Any,
    influence_min: Any,
    influence_max: Any,
    safety: Any,
    **_: Any,
) -> Any:
    future = 0 if dual_clip is not None and mpmath.exp(x) > dual_clip else x
    influence = min(max(mpmath.exp(future), influence_min), influence_max)
    if sign < 0 and mpmath.exp(x) > safety:
        influence = min(max(influence, mpmath.mpf(0.8)), 1)
    w = influence * clipped(x, 1 - eps_low, 1 + eps_high, sign, dual_clip)[0]
    return w, w, w


METHODS = {
    "fipo": Method(
        closed_form=fipo_form,
        settings=[{"dual_clip": 3, "half_life": 2, "influence_min": 0, "influence_max": 10, "safety": 1.3}],
        extreme=[{"influence_max": 1, "eps_high": 0}, {"influence_min": 0, "influence_max": 10, "safety": INF}],
    ),
}

test_closed_form = by_region(METHODS)


def test_the_future_is_the_discounted_sum(make_batch: Any) -> None:
    objective = FIPO(half_life=3, influence_min=0, influence_max=10, dual_clip=4, safety=math.inf, eps_high=2)
    reached = 0
    for seed in range(4):
        batch = make_batch(B=6, T=13, spread=0.6, seed=seed)
        tokens = batch.tokens()
        x, weight = tokens.log_ratio, objective.weight(tokens)
        for row in range(6):
            for t in range(13):
                if not tokens.mask[row, t] or weight[row, t] == 0:
                    continue
                future = sum(0.5 ** ((k - t) / 3) * x[row, k].item() for k in range(t, 13) if x[row, k] <= math.log(4))
                expected = min(math.exp(future), 10) * x[row, t].exp().item()
                assert weight[row, t].item() == pytest.approx(expected, rel=1e-12)
                reached += abs(future - x[row, t].item()) > 0.1
    assert reached > 50


def test_without_influence_it_is_grpo(make_batch: Any) -> None:
    tokens = make_batch(B=6, T=9, spread=0.7).tokens()
    plain, grpo = FIPO(influence_max=1, dual_clip=3), objectives.make("grpo", eps_high=0.28, dual_clip=3)
    torch.testing.assert_close(plain.weight(tokens), grpo.weight(tokens), rtol=1e-12, atol=0)


def test_what_comes_before_does_not_count() -> None:
    x = torch.tensor([[2.0, 0.05, 0.0]], dtype=torch.float64)
    old, mask = torch.full_like(x, -3.0), torch.ones_like(x, dtype=torch.bool)
    weight = FIPO().weight(TokenBatch(old + x, old, torch.ones(1), mask))
    assert weight[0, 1:].tolist() == pytest.approx([math.exp(0.1), 1.0])
