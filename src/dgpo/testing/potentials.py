"""The potential of an objective, and the loss computed from weight and potential."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgpo import aggregation
from dgpo.correction import Truncate
from dgpo.loss import policy_loss
from dgpo.objectives import Objective
from dgpo.testing.batches import RARE, Batch, calibrated, column, linspace, random_batch
from dgpo.testing.failure import require, require_close
from dgpo.tokens import TokenBatch


def declares_a_potential(objective: Objective) -> bool:
    """Whether its class has one of its own."""
    return type(objective).potential is not Objective.potential


def _with(tokens: TokenBatch, logprob: Tensor) -> TokenBatch:
    return TokenBatch(logprob, tokens.old_logprob, tokens.advantage, tokens.mask, entropy=tokens.entropy)


def check_potential(objective: Objective) -> None:
    """dφ/dlogprob = w for log ratios within ±20; without a declared potential φ is w itself."""
    chosen = calibrated(objective)
    batches = [column(linspace(-19.97, 19.94, 801), sign, RARE) for sign in (-1.3, 1.3)]
    batches += [random_batch().tokens(), random_batch(B=8, T=6, spread=1.5, seed=3).tokens()]
    for tokens in batches:
        weight = chosen.weight(tokens)
        if declares_a_potential(objective):
            logprob = tokens.logprob.detach().requires_grad_()
            total = torch.where(tokens.mask, chosen.potential(_with(tokens, logprob)), 0.0).sum()
            (slope,) = torch.autograd.grad(total, logprob)
            text = "the derivative of potential is not weight"
            require_close(slope[tokens.mask], weight[tokens.mask], objective, text, rtol=1e-9, atol=1e-12)
        else:
            require_close(chosen.potential(tokens), weight, objective, "potential is not weight")


def check_potential_by_differences(objective: Objective) -> None:
    """Finite differences of φ away from jumps, to find errors that autograd would share with the weight."""
    chosen = calibrated(objective)
    for sign in (-1.0, 1.0):
        x = linspace(-2.93, 2.88, 40)
        before, after = (chosen.weight(column(x + shift, sign, -3.0)).squeeze(1) for shift in (-1e-3, 1e-3))
        # a jump of w is a kink of φ, across which a difference is not a derivative
        x = x[(after - before).abs() < 0.05 * (1 + before.abs())]
        require(len(x) >= 36, objective, f"w jumps near {40 - len(x)} of 40 log ratios; expected at most 4 jumps")
        tokens = column(x, sign, -3.0)

        def shown(logprob: Tensor, tokens: TokenBatch = tokens) -> Tensor:
            return chosen.potential(_with(tokens, logprob))

        logprob = tokens.logprob.clone().requires_grad_()
        if declares_a_potential(objective):
            # responses of one token, so one shift of all of them is a difference for each
            (slope,) = torch.autograd.grad(shown(logprob).sum(), logprob)
            with torch.no_grad():
                differences = (shown(logprob + 1e-6) - shown(logprob - 1e-6)) / 2e-6
            text = f"potential at A = {sign:g}: finite differences are not its gradient"
            require_close(slope, differences, objective, text, rtol=1e-5, atol=1e-5)
        else:
            require(not shown(logprob).requires_grad, objective, "potential has a gradient and is not declared")


def _gradcheck(
    objective: Objective, what: str, function: Callable[[Tensor], Tensor], logprob: Tensor, *, atol: float
) -> None:
    try:
        torch.autograd.gradcheck(function, logprob, atol=atol, rtol=1e-5)
    except RuntimeError as error:  # what gradcheck raises for a wrong gradient
        raise AssertionError(f"{objective!r}: {what}: finite differences are not its gradient. {error}") from error


def check_potential_of_responses(objective: Objective) -> None:
    """Σφ over ragged batches with one advantage per response, for sequence-level objectives."""
    if not declares_a_potential(objective):
        return
    chosen, found = calibrated(objective), 0
    for seed in range(40):
        batch = random_batch(B=4, T=5, spread=0.3, seed=seed)
        before, after = (
            chosen.weight(batch.but(logprob=batch.logprob + shift).tokens()) for shift in (-1e-4, 1e-4)
        )  # fmt: skip
        if ((after - before).abs() > 0.01 * (1 + before.abs())).any():
            continue  # a branch point is near
        _check_response(chosen, batch, of_the_loss=found == 0)
        found += 1
        if found == 3:
            return
    require(False, objective, f"w jumps near some token in {40 - found} of 40 batches; expected three without")


def _check_response(objective: Objective, batch: Batch, *, of_the_loss: bool) -> None:
    def total(logprob: Tensor) -> Tensor:
        return torch.where(batch.mask, objective.potential(_with(batch.tokens(), logprob)), 0.0).sum()

    def value(logprob: Tensor) -> Tensor:
        return policy_loss(
            logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective, entropy=batch.entropy
        ).value

    logprob = batch.logprob.clone().requires_grad_()
    _gradcheck(objective, "the sum of potential", total, logprob, atol=1e-6)
    if of_the_loss:
        # the logged value is a true objective where there is a potential, so its own differences are the gradient
        _gradcheck(objective, "the loss", value, logprob, atol=1e-6)
    (slope,) = torch.autograd.grad(total(logprob), logprob)
    weight = torch.where(batch.mask, objective.weight(batch.tokens()), 0.0)
    text = "the derivative of the sum of potential is not weight"
    require_close(slope, weight, objective, text, rtol=1e-10, atol=1e-12)


def check_gradient_of_the_loss(objective: Objective) -> None:
    """∇loss = -c·ρ·A·w and the loss is -Σ c·ρ·A·φ, under every aggregation; with a penalty κ of the objective
    ∇loss = -c·ρ·(A·w - dκ/dlogprob) and the loss is -Σ c·ρ·(A·φ - κ)."""
    batch = random_batch(B=6, T=9, spread=1.0, seed=5)
    batch.logprob.requires_grad_()
    tokens, advantage = batch.tokens(), batch.advantage.unsqueeze(1)
    rho = (batch.old_logprob - batch.rollout_logprob).exp().clamp(max=1.2)
    chosen = objective.calibrate(tokens)
    weight = torch.where(batch.mask, chosen.weight(tokens), 0.0)
    phi = torch.where(batch.mask, chosen.potential(tokens).detach(), 0.0)
    kappa = slope = torch.zeros_like(weight)
    if chosen.penalises:
        kappa, slope = (torch.where(batch.mask, part, 0.0) for part in chosen.penalty(tokens))
    for how in aggregation.AGGREGATIONS:
        summed = aggregation.make(how, **({"length": 11} if how == "seq-mean-token-sum-norm" else {}))
        out = policy_loss(
            batch.logprob,
            batch.old_logprob,
            batch.advantage,
            batch.mask,
            objective=objective,
            aggregation=summed,
            rollout_logprob=batch.rollout_logprob,
            correction=Truncate(cap=1.2),
            entropy=batch.entropy,
        )
        (gradient,) = torch.autograd.grad(out.value, batch.logprob)
        c = summed.coefficient(batch.mask, aggregation.StepTotals.of(batch.mask), torch.float64)
        require_close(out.weight, weight, objective, f"the weight in the loss is not weight, with {how}")
        expected = -c * rho * (advantage * weight - slope)
        text = f"the gradient is not -c·ρ·(A·w - dκ/dlogprob), with {how}"
        # where the terms cancel, their rounding stays
        require_close(gradient, expected, objective, text, rtol=1e-13, atol=1e-15 if chosen.penalises else 0.0)
        expected = -(c * rho * (advantage * phi - kappa)).sum()
        text = f"the loss is not -Σ c·ρ·(A·φ - κ), with {how}"
        require_close(out.value.detach(), expected, objective, text, rtol=1e-12, atol=1e-15)
