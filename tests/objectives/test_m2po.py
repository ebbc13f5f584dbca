"""M2PO: the closed form, what `calibrate` finds, and the batches in which it finds nothing to clip."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import NEAR, Method, by_region, clipped

from dgpo import TokenBatch
from dgpo.objectives import M2PO


def m2po_form(x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any, tau: Any, **_: Any) -> Any:
    return clipped(x, min(mpmath.exp(-tau), 1 - eps_low), max(mpmath.exp(tau), 1 + eps_high), sign, None)


METHODS = {
    "m2po": Method(
        closed_form=m2po_form,
        settings=[{"eps_low": 0, "eps_high": 0}, {"tau": math.inf}],
        extreme=[{"tau": 1e-7, "eps_low": 0, "eps_high": 0}, {"tau": 0, "eps_low": 1 - NEAR}],
    ),
}

test_closed_form = by_region(METHODS)


def batch_of(x: list[float], advantage: list[float]) -> TokenBatch:
    """One response of one token for each."""
    log_ratio = torch.tensor(x, dtype=torch.float64).unsqueeze(1)
    old = torch.full_like(log_ratio, -9.0)
    mask = torch.ones_like(old, dtype=torch.bool)
    return TokenBatch(old + log_ratio, old, torch.tensor(advantage, dtype=torch.float64), mask)


def capped_moment(x: list[float], tau: float) -> float:
    return sum(min(value * value, tau * tau) for value in x) / len(x)


def test_the_bound_is_the_largest_log_ratio_that_keeps_the_budget(make_batch: Any) -> None:
    clips = 0
    for seed in range(12):
        tokens = make_batch(B=6, T=12, spread=0.5, seed=seed).tokens()
        x = (tokens.logprob - tokens.old_logprob)[tokens.mask & (tokens.advantage * tokens.log_ratio > 0)].tolist()
        for budget in (0.01, 0.04, 0.3):
            tau = M2PO(budget=budget).calibrate(tokens).tau
            assert tau is not None
            if tau == math.inf:
                assert capped_moment(x, math.inf) <= budget
                continue
            clips += 1
            larger = min((abs(value) for value in x if abs(value) > tau + 1e-9), default=math.inf)
            assert min(abs(abs(value) - tau) for value in x) < 1e-9 or tau == 0
            assert capped_moment(x, tau) < budget <= capped_moment(x, larger) + 1e-12
    assert clips > 12


def test_the_token_that_the_bound_is_taken_from_is_clipped() -> None:
    tokens = batch_of([0.1, 0.2, 0.9, -0.3], [1.0, 1.0, 1.0, 1.0])
    found = M2PO(budget=0.02, eps_low=0, eps_high=0).calibrate(tokens)
    assert found.tau == pytest.approx(0.1, rel=1e-9)
    assert (found.weight(tokens) == 0).flatten().tolist() == [True, True, True, False]


def test_tokens_that_move_against_their_advantage_do_not_count() -> None:
    tokens = batch_of([-3.0, 2.0, 0.0, 5.0], [1.0, -1.0, -1.0, 0.0])
    assert M2PO().calibrate(tokens).tau == math.inf
    assert (M2PO().calibrate(tokens).weight(tokens) == tokens.ratio).all()


def test_the_bounds_are_never_narrower_than_those_of_the_fields() -> None:
    tokens = batch_of([0.45, 0.3, -0.5, -0.3], [1.0, 1.0, -1.0, -1.0])
    found = M2PO(budget=1e-4).calibrate(tokens)
    assert found.tau == 0
    assert (found.weight(tokens) == 0).flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (2, 4)])
def test_a_batch_without_a_token_is_not_clipped(shape: tuple[int, int]) -> None:
    zeros = torch.zeros(shape)
    found = M2PO().calibrate(TokenBatch(zeros, zeros, torch.ones(shape[0]), torch.zeros(shape, dtype=torch.bool)))
    assert found.tau == math.inf
    assert found.properties().continuous
    assert found.properties().limit_negative == "finite"
