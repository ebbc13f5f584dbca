"""DRO: the closed form, the loss as frameworks write it, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import INF, Method, by_region

from dgpo import policy_loss
from dgpo.objectives import DRO


def dro_form(x: Any, q: Any, sign: int, beta: Any) -> Any:
    return 1, 1 + x, 1 + abs(x)


METHODS = {
    "dro": Method(closed_form=dro_form, settings=[{"beta": 0}, {"beta": 3}], extreme=[{"beta": 1e9}]),
}

test_closed_form = by_region(METHODS)


def test_the_loss_is_the_one_that_is_printed_for_tinker(make_batch: Any) -> None:
    """log π · A - β/2 (log π/q)², differentiated by autograd, in every token and whatever its advantage."""
    batch, beta = make_batch(), 0.3
    batch.logprob.requires_grad_()
    x = batch.logprob - batch.old_logprob
    objective = batch.logprob * batch.advantage.unsqueeze(1) - 0.5 * beta * x.square()
    expected = torch.where(batch.mask, -objective, 0.0).sum() / batch.mask.sum()
    (gradient,) = torch.autograd.grad(expected, batch.logprob)
    out = policy_loss(batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective=DRO(beta=beta))
    torch.testing.assert_close(torch.autograd.grad(out.value, batch.logprob)[0], gradient, rtol=1e-12, atol=1e-15)
    assert (gradient[batch.mask & (batch.advantage == 0).unsqueeze(1)] != 0).any()


def test_beyond_the_clamp_the_penalty_pulls_with_the_force_of_20_nats() -> None:
    for x in (20.0, 300.0):
        logprob = torch.tensor([[-x]], dtype=torch.float64, requires_grad=True)
        out = policy_loss(logprob, torch.zeros_like(logprob), torch.zeros(1), torch.ones(1, 1), objective=DRO(beta=2))
        (gradient,) = torch.autograd.grad(out.value, logprob)
        assert (out.value.item(), gradient.item()) == pytest.approx((400.0, -40.0), rel=1e-14)


def test_a_penalty_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DRO: beta = inf is not allowed; expected a number in \[0, inf\)"):
        DRO(beta=INF)
