"""MinPRO: the closed form of one token, and the smallest ratio before a token in a response."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import Method, by_region

from dgpo import TokenBatch
from dgpo.objectives import MinPRO


def minpro_form(x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any) -> Any:
    w = min(max(mpmath.exp(x), 1 - eps_low), 1 + eps_high)
    return w, w, w


METHODS = {
    "minpro": Method(
        closed_form=minpro_form,
        settings=[{"eps_low": 1, "eps_high": 4}],
        extreme=[{"eps_low": 0, "eps_high": 0}, {"eps_low": 1 - 1e-7, "eps_high": 1e-7}],
    ),
}

test_closed_form = by_region(METHODS)


def test_the_smallest_ratio_before_the_token_multiplies_it(make_batch: Any) -> None:
    objective = MinPRO(eps_low=0.9, eps_high=2)
    seen = set()
    for seed in range(5):
        batch = make_batch(B=6, T=12, spread=0.8, seed=seed)
        weight = objective.weight(batch.tokens())
        for row, valid in enumerate(batch.mask):
            ratios = (batch.logprob - batch.old_logprob)[row][valid].exp().tolist()
            for t, (r, w) in enumerate(zip(ratios, weight[row][valid].tolist(), strict=True)):
                product = r * min(ratios[:t], default=1.0)
                assert w == pytest.approx(min(max(product, 0.1), 3), rel=1e-12)
                seen.add("low" if product < 0.1 else "high" if product > 3 else "inside")
    assert seen == {"low", "high", "inside"}


def test_only_what_comes_before_counts() -> None:
    x = torch.tensor([[0.1, -0.5, 0.2, 0.3]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True]])
    old = torch.full_like(x, -2.0)
    weight = MinPRO(eps_low=1, eps_high=9).weight(TokenBatch(old + x, old, torch.ones(1), mask))
    assert weight[0][mask[0]].log().tolist() == pytest.approx([0.1, 0.1 + 0.2, 0.1 + 0.3])
    assert math.isinf(MinPRO(eps_low=1).boundaries(TokenBatch(old, old, torch.ones(1), mask)).low[0, 0])
