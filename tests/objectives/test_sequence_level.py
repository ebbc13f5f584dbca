"""GSPO, GMPO, VESPO: the gradient of the loss against autograd through the sequence objective, written naively."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo import TokenBatch, policy_loss
from dgpo.objectives import GMPO, GSPO, VESPO, Objective


def gspo(x: Tensor, advantage: Tensor, objective: GSPO) -> Tensor:
    s = x.mean().exp()
    return torch.minimum(s * advantage, s.clamp(1 - objective.eps_low, 1 + objective.eps_high) * advantage)


def gmpo(x: Tensor, advantage: Tensor, objective: GMPO) -> Tensor:
    """Token by token pessimistic, as in the paper: the worse of the clipped and the unclipped."""
    sign = advantage.sign()
    worse = torch.minimum(x * sign, x.clamp(-objective.log_clip_low, objective.log_clip_high) * sign) * sign
    return advantage * worse.mean().exp()


def vespo(x: Tensor, advantage: Tensor, objective: VESPO) -> Tensor:
    """The authors' surrogate: a detached weight of the whole response times its log-probs."""
    W = x.detach().sum().exp()
    negative = bool(advantage < 0)
    k, rate = (objective.k_neg, objective.lambda_neg) if negative else (objective.k_pos, objective.lambda_pos)
    return math.exp(rate) * W**k * torch.exp(-rate * W) * advantage * x.mean()


CASES: list[tuple[Objective, Any]] = [
    (GSPO(eps_low=0.2, eps_high=0.28), gspo),
    (GSPO(eps_low=0.9, eps_high=9), gspo),
    (GSPO(), gspo),
    (GMPO(), gmpo),
    (GMPO(log_clip_low=0.1, log_clip_high=0.2), gmpo),
    (VESPO(), vespo),
    (VESPO(k_pos=1.5, lambda_neg=2.5), vespo),
]


def with_an_empty_row(batch: Any) -> Tensor:
    mask = batch.mask.clone()
    mask[1] = False
    return mask


@pytest.mark.parametrize(("objective", "naive"), CASES, ids=[str(objective) for objective, _ in CASES])
@pytest.mark.parametrize("spread", [0.1, 0.5])
@pytest.mark.parametrize("empty_row", [False, True], ids=["", "empty row"])
def test_gradient_is_that_of_the_sequence_objective(
    objective: Objective, naive: Any, spread: float, empty_row: bool, make_batch: Any
) -> None:
    """Under seq-mean-token-mean: the mean over responses that have tokens; with holes in the mask."""
    reached = 0.0
    for seed in range(5):
        batch = make_batch(B=6, T=7, spread=spread, seed=seed)
        mask = with_an_empty_row(batch) if empty_row else batch.mask
        assert not mask[0].all()
        logprob = batch.logprob.clone().requires_grad_()
        per_row = [
            naive((logprob[i] - batch.old_logprob[i])[mask[i]], batch.advantage[i], objective)
            for i in range(len(mask))
            if mask[i].any()
        ]
        expected = -torch.stack(per_row).mean()
        (slope,) = torch.autograd.grad(expected, logprob)

        asked = torch.where(mask, batch.logprob, torch.nan).requires_grad_()
        out = policy_loss(
            asked, batch.old_logprob, batch.advantage, mask, objective=objective, aggregation="seq-mean-token-mean"
        )
        (gradient,) = torch.autograd.grad(out.value, asked)
        torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-15)
        if not isinstance(objective, VESPO):
            torch.testing.assert_close(out.value, expected, rtol=1e-12, atol=1e-15)
        reached = max(reached, slope.abs().max().item())
    assert reached > 1e-4 or objective == GSPO()  # its paper's range is too narrow for any of these responses


def test_gspos_narrow_range_keeps_what_lies_inside(make_batch: Any) -> None:
    batch = make_batch(B=6, T=7, spread=1e-4)
    weight = GSPO().weight(batch.tokens())
    assert (weight[batch.mask] > 0.99).all()


@pytest.mark.parametrize("objective", [GSPO(eps_low=0.5, eps_high=0.5), VESPO()], ids=str)
def test_all_tokens_of_a_response_weigh_the_same(objective: Objective, make_batch: Any) -> None:
    batch = make_batch()
    weight = objective.weight(batch.tokens())
    assert all(len(set(row[valid].tolist())) == 1 for row, valid in zip(weight, batch.mask, strict=True))


def test_gmpo_stops_the_gradient_of_single_tokens() -> None:
    x = torch.tensor([[0.1, 0.5, -0.3]], dtype=torch.float64)
    old = torch.full_like(x, -1.0)
    mask = torch.ones_like(x, dtype=torch.bool)
    weight = GMPO().weight(TokenBatch(old + x, old, torch.tensor([1.0]), mask))
    g = torch.tensor((0.1 + 0.4 - 0.3) / 3).exp().item()
    assert weight[0].tolist() == pytest.approx([g, 0.0, g], rel=1e-7)


def test_gspo_token_looks_at_the_advantage_of_the_token() -> None:
    """s beyond the upper bound: tokens with A > 0 stop, tokens with A < 0 of the same response go on."""
    x = torch.tensor([[0.4, 0.2, 0.3, 9.0]], dtype=torch.float64)
    old = torch.full_like(x, -1.0)
    mask = torch.tensor([[True, True, True, False]])
    advantage = torch.tensor([[1.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
    weight = GSPO(eps_low=0.2, eps_high=0.2).weight(TokenBatch(old + x, old, advantage, mask))
    s = torch.tensor(0.3, dtype=torch.float64).exp().item()
    assert weight[0, :3].tolist() == pytest.approx([0.0, s, s], rel=1e-12)


@pytest.mark.parametrize("objective", [GSPO(), GMPO(), VESPO()], ids=str)
def test_a_batch_of_empty_rows_is_a_loss_of_zero(objective: Objective) -> None:
    logprob = torch.full((2, 3), torch.nan, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    out = policy_loss(
        logprob, logprob.detach(), torch.ones(2), mask, objective=objective, aggregation="seq-mean-token-mean"
    )
    (gradient,) = torch.autograd.grad(out.value, logprob)
    assert out.value.item() == 0
    assert (gradient == 0).all()
