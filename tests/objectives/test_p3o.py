"""P3O: the closed form, the effective sample size, and the penalty that goes with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import Method, by_region, capped

from dgpo import TokenBatch, policy_loss
from dgpo.objectives import P3O


def p3o_form(x: Any, q: Any, sign: int, ess: Any) -> Any:
    return capped(x, ess)


METHODS = {
    "p3o": Method(closed_form=p3o_form, settings=[{"ess": 0.25}, {"ess": 1}], extreme=[{"ess": 1e-7}, {"ess": 1}]),
}

test_closed_form = by_region(METHODS)


def test_the_effective_sample_size_is_that_of_the_valid_tokens(make_batch: Any) -> None:
    for seed in range(4):
        tokens = make_batch(B=6, T=9, spread=0.8, seed=seed).tokens()
        r = (tokens.logprob - tokens.old_logprob)[tokens.mask].exp()
        assert P3O().calibrate(tokens).ess == pytest.approx((r.sum() ** 2 / (len(r) * r.square().sum())).item())
    equal = TokenBatch(torch.full((2, 3), -1.0), torch.full((2, 3), -1.5), torch.ones(2), torch.ones(2, 3))
    assert P3O().calibrate(equal).ess == 1  # ratios that are equal, whatever they are
    assert not P3O().calibrate(equal).penalises
    nothing = torch.zeros(2, 3)
    assert P3O().calibrate(TokenBatch(nothing, nothing, torch.ones(2), nothing)).ess == 1


def test_the_penalty_is_the_k3_estimate_of_the_divergence_from_the_old_policy(make_batch: Any) -> None:
    """By autograd through the loss as the authors print it, tokens with A = 0 among them."""
    batch = make_batch(B=6, T=9, spread=0.8)
    ess = P3O().calibrate(batch.tokens()).ess
    logprob = batch.logprob.clone().requires_grad_()
    x, A = logprob - batch.old_logprob, batch.advantage.unsqueeze(1)
    weight = x.detach().exp().clamp(max=ess)
    terms = -weight * A * logprob + (1 - ess) * ((-x).exp() - 1 + x)
    total = torch.where(batch.mask, terms, 0.0).sum() / batch.mask.sum()
    (expected,) = torch.autograd.grad(total, logprob)
    out = policy_loss(logprob, batch.old_logprob, batch.advantage, batch.mask, objective="p3o")
    torch.testing.assert_close(torch.autograd.grad(out.value, logprob)[0], expected, rtol=1e-10, atol=1e-15)
    assert (expected[batch.mask & (A == 0)] != 0).all()
