"""policy_loss: the product of the four factors, and nothing that knows a method by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import UnionType

import torch
from torch import Tensor

from dgpo import aggregation as aggregations
from dgpo import correction as corrections
from dgpo import kl as estimators
from dgpo import objectives
from dgpo.aggregation import Aggregation, StepTotals
from dgpo.correction import Correction
from dgpo.fields import check_value
from dgpo.objectives import Objective
from dgpo.regions import regions
from dgpo.registry import did_you_mean
from dgpo.tokens import TokenBatch

SEQUENCE_KL = ("k3_sequence_ratio",)
"""Estimators that read the whole response."""

KL_LOSSES = ("k2", "k3", "k3_ratio", *SEQUENCE_KL)


@dataclass(frozen=True)
class PolicyLoss:
    """What `policy_loss` returns.

    Attributes:
        value: scalar to call `backward` on. Σ over micro-batches and ranks with the same `totals` is the step's loss.
        weight: [B, T] w, detached; 0 where masked.
        statistics: name -> 0-d tensor on the device of the batch, the same keys for every objective; over the valid
            tokens of this batch. `fraction/R` and `mass/R` (share of Σ|A·w|) for the five regions R, `weight/mean`,
            `weight/max`, `weight/zero_fraction`, `weight/ess` = (Σ|w|)²/(N·Σw²), `kl/old` (k3 estimate of
            KL(π_old ‖ π_θ)), `advantage/zero_fraction`, and, if μ was given, of KL(μ ‖ π_old) the k3 and k1 estimates
            `kl/sampler` and `kl/sampler_k1`, and their difference `sampler/cut_mass` = mean(1 - π_old/μ), an estimate
            of π_old's probability of tokens that μ never draws (see `dgpo.kl`).
    """

    value: Tensor
    weight: Tensor
    statistics: dict[str, Tensor]


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor | None,
    advantage: Tensor,
    mask: Tensor,
    objective: str | Objective = "dgpo",
    aggregation: str | Aggregation = "token-mean",
    totals: StepTotals | None = None,
    rollout_logprob: Tensor | None = None,
    correction: str | Correction | None = None,
    entropy: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    entropy_coef: float = 0.0,
    entropy_aggregation: str | Aggregation | None = None,
) -> PolicyLoss:
    """The loss of one (micro-)batch under any objective::

        value = Σ -(c·ρ·A) · (φ + w·(exp(logprob - sg(logprob)) - 1))  +  kl_coef · Σ c·κ  -  entropy_coef · Σ c_H·H

    with c, ρ, A, φ and w detached, so that the gradient of the policy term is -c·ρ·A·w·∇logprob and its value is
    -Σ c·ρ·A·φ. The last two sums run over all valid tokens and carry no ρ.

    Args:
        logprob: [B, T] log π_θ of the sampled tokens, in nats, with gradient.
        old_logprob: [B, T] log π_old; None means on-policy (ratio 1).
        advantage: [B] or [B, T].
        mask: [B, T] bool or 0/1, valid response tokens.
        objective: a name of `objectives.OBJECTIVES`, or an `Objective`.
        aggregation: a name of `aggregation.AGGREGATIONS` that needs no fields, or an `Aggregation`.
        totals: tokens and sequences of the whole optimiser step; None takes those of this batch. With gradient
            accumulation or several ranks the gradient is only right with the step's totals.
        rollout_logprob: [B, T] log μ of the sampler; read by `correction` and by the statistics of μ.
        correction: ρ, a name of `correction.CORRECTIONS` or a `Correction`; None is 1.
        entropy: [B, T] entropy of π_θ in nats. Only the bonus differentiates it.
        ref_logprob: [B, T] log-probs under the reference model, for the KL term.
        kl_coef: coefficient of the KL term, >= 0.
        kl: estimator κ of KL(π_θ ‖ π_ref): "k2", "k3", "k3_ratio" or "k3_sequence_ratio" (see `dgpo.kl`).
        entropy_coef: coefficient of the entropy bonus; below 0 a penalty.
        entropy_aggregation: gives c_H; None takes `aggregation`, so that c_H = c.

    Arithmetic is float64 for a float64 `logprob`, float32 otherwise. Tensors may have any strides.

    Raises:
        ValueError: unknown names, shapes or devices that do not fit, a coefficient that is not finite or, for the KL
            term, below 0, a coefficient without the tensor it needs.
        TypeError: an argument that is not a tensor, of a dtype that does not fit, or not of the kind named above.
    """
    chosen, how, bonus, rho = check_terms(
        objective=objective,
        aggregation=aggregation,
        entropy_aggregation=entropy_aggregation,
        correction=correction,
        totals=totals,
        kl_coef=kl_coef,
        kl=kl,
        has_reference=ref_logprob is not None,
        entropy_coef=entropy_coef,
    )
    tokens = TokenBatch(logprob, old_logprob, advantage, mask, rollout_logprob=rollout_logprob, entropy=entropy)
    reference = None if ref_logprob is None else tokens.masked("ref_logprob", ref_logprob).detach()
    if totals is not None:
        totals.check_device("logprob", tokens.mask.device)
    c = how.coefficient(tokens.mask, totals or StepTotals.of(tokens.mask), tokens.dtype)

    with torch.no_grad():
        chosen = chosen.calibrate(tokens)
        w = torch.where(tokens.mask, chosen.weight(tokens), 0.0)
        phi = torch.where(tokens.mask, chosen.potential(tokens), 0.0)
        scale = -(c * tokens.advantage)
        if rho is not None:
            scale = scale * rho.factor(tokens)
    surrogate = phi + w * ((tokens.logprob - tokens.logprob.detach()).exp() - 1)
    value = (scale * surrogate).sum()
    if kl_coef != 0 and reference is not None:
        value = value + kl_coef * (c * _estimate(tokens, reference, kl)).sum()
    if entropy_coef != 0:
        if entropy is None:
            raise ValueError(f"entropy_coef = {entropy_coef} needs entropy [B, T], got None")
        if bonus is not None:
            c = bonus.coefficient(tokens.mask, totals or StepTotals.of(tokens.mask), tokens.dtype)
        value = value - entropy_coef * (c * tokens.masked("entropy", entropy)).sum()
    return PolicyLoss(value=value, weight=w, statistics=_statistics(tokens, chosen, w))


def check_terms(
    *,
    objective: str | Objective,
    aggregation: str | Aggregation,
    entropy_aggregation: str | Aggregation | None,
    correction: str | Correction | None,
    totals: StepTotals | None,
    kl_coef: float,
    kl: str,
    has_reference: bool,
    entropy_coef: float,
) -> tuple[Objective, Aggregation, Aggregation | None, Correction | None]:
    """Everything of a loss that is no tensor, for both losses: names resolved, numbers and kinds checked.

    Raises:
        ValueError: an unknown name, a coefficient outside its range, a KL term without `ref_logprob`.
        TypeError: not of the kind that is expected.
    """
    chosen = objectives.make(objective) if isinstance(objective, str) else objective
    how = aggregations.make(aggregation) if isinstance(aggregation, str) else aggregation
    bonus = entropy_aggregation
    bonus = aggregations.make(bonus) if isinstance(bonus, str) else bonus
    rho = corrections.make(correction) if isinstance(correction, str) else correction
    _require("objective", chosen, Objective, "a name or an instance of Objective")
    _require("aggregation", how, Aggregation, "a name or an instance of Aggregation")
    _require("entropy_aggregation", bonus, Aggregation | None, "a name, an instance of Aggregation or None")
    _require("correction", rho, Correction | None, "a name, an instance of Correction or None")
    _require("totals", totals, StepTotals | None, "a StepTotals or None")
    check_value("kl_coef", kl_coef, "[0, inf)")
    check_value("entropy_coef", entropy_coef, "(-inf, inf)")
    _check_kl(kl)
    if kl_coef != 0 and not has_reference:
        raise ValueError("kl_coef != 0 needs ref_logprob [B, T], got None")
    return chosen, how, bonus, rho


def _require(name: str, value: object, kind: type | UnionType, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; expected {expected}")


def reference_kl(tokens: TokenBatch, ref_logprob: Tensor, kl: str) -> Tensor:
    """κ [B, T], the estimator `kl` of KL(π_θ ‖ π_ref), with gradient; 0 where masked.

    Raises:
        ValueError: an unknown estimator, or a `ref_logprob` of another shape or device.
        TypeError: a `ref_logprob` that is no floating tensor.
    """
    _check_kl(kl)
    return _estimate(tokens, tokens.masked("ref_logprob", ref_logprob).detach(), kl)


def _check_kl(kl: str) -> None:
    if kl not in KL_LOSSES:
        raise ValueError(f"unknown kl {kl!r}{did_you_mean(kl, KL_LOSSES)}; known: {', '.join(KL_LOSSES)}")


def _estimate(tokens: TokenBatch, reference: Tensor, kl: str) -> Tensor:
    if kl == "k2":
        return estimators.k2(tokens.logprob, reference)
    if kl == "k3":
        return estimators.k3(tokens.logprob, reference)
    if kl == "k3_ratio":
        return estimators.k3_ratio(tokens.logprob, reference, tokens.old_logprob)
    return estimators.k3_sequence_ratio(tokens.logprob, reference, tokens.old_logprob, tokens.mask)


@torch.no_grad()
def _statistics(tokens: TokenBatch, objective: Objective, w: Tensor) -> dict[str, Tensor]:
    valid = tokens.mask
    count = valid.sum().clamp(min=1).to(w.dtype)
    size = w.abs()
    mass = (tokens.advantage * w).abs()
    total_mass = mass.sum()
    tiny = torch.finfo(w.dtype).tiny  # an empty share is 0, not 0/0

    where = regions(tokens, getattr(objective, "eps_low", 0.2), getattr(objective, "eps_high", 0.2))
    statistics = {f"fraction/{name}": region.sum() / count for name, region in where.items()}
    statistics |= {f"mass/{name}": (mass * region).sum() / total_mass.clamp(min=tiny) for name, region in where.items()}
    statistics["weight/mean"] = w.sum() / count
    largest = torch.where(valid, w, -torch.inf).amax() if w.numel() else w.sum()
    statistics["weight/max"] = torch.where(valid.any(), largest, 0.0)
    statistics["weight/zero_fraction"] = ((w == 0) & valid).sum() / count
    # in units of the largest weight: the square of one above 1e19 is more than a float32 holds
    relative = size / size.amax().clamp(min=tiny) if size.numel() else size
    statistics["weight/ess"] = relative.sum().square() / (count * relative.square().sum()).clamp(min=tiny)
    statistics["kl/old"] = estimators.k3(tokens.old_logprob, tokens.logprob).sum() / count
    statistics["advantage/zero_fraction"] = ((tokens.advantage == 0) & valid).sum() / count
    if tokens.rollout_logprob is not None:
        pair = tokens.rollout_logprob, tokens.old_logprob
        statistics["kl/sampler"] = estimators.k3(*pair).sum() / count
        statistics["kl/sampler_k1"] = estimators.k1(*pair).sum() / count
        statistics["sampler/cut_mass"] = estimators.cut_mass(*pair).sum() / count
    return statistics
