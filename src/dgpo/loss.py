"""policy_loss: the product of the four factors, for any objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo import kl as estimators
from dgpo.aggregation import Aggregation, StepTotals
from dgpo.correction import Correction
from dgpo.kl import reference_kl
from dgpo.objectives import Objective
from dgpo.regions import regions
from dgpo.spec import LossSpec
from dgpo.tokens import NotFiniteError, TokenBatch, check, is_finite


@dataclass(frozen=True)
class PolicyLoss:
    """Result of `policy_loss`.

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
    anchor: Literal["old", "rollout"] = "old",
) -> PolicyLoss:
    """The loss of one (micro-)batch under any objective::

        value = Σ -(c·ρ·A) · (φ + w·(exp(logprob - sg(logprob)) - 1))  +  kl_coef · Σ c·κ  -  entropy_coef · Σ c_H·H

    with c, ρ, A, φ and w detached, so that the gradient of the policy term is -c·ρ·A·w·∇logprob and its value is
    -Σ c·ρ·A·φ. An objective that `penalises` adds Σ c·ρ·κ to it, with its gradient c·ρ·dκ/dlogprob·∇logprob.
    The last two sums run over all valid tokens and carry no ρ.

    Args:
        logprob: [B, T] log π_θ of the sampled tokens, in nats, with gradient.
        old_logprob: [B, T] log π_old; None means on-policy (ratio 1).
        advantage: [B] or [B, T].
        mask: [B, T] bool or 0/1, valid response tokens.
        objective: a name of `objectives.OBJECTIVES`, or an `Objective`.
        aggregation: a name of `aggregation.AGGREGATIONS` that needs no fields, or an `Aggregation`.
        totals: tokens and sequences of the whole optimiser step; None takes those of this batch. With gradient
            accumulation or several ranks the gradient is only right with the step's totals.
        rollout_logprob: [B, T] log μ of the sampler; read by `correction`, by the anchor "rollout" and by the
            statistics of μ.
        correction: ρ, a name of `correction.CORRECTIONS` or a `Correction`; None is 1.
        entropy: [B, T] entropy of π_θ in nats. Only the bonus differentiates it.
        ref_logprob: [B, T] log-probs under the reference model, for the KL term.
        kl_coef: coefficient of the KL term, >= 0.
        kl: estimator κ of KL(π_θ ‖ π_ref): "k2", "k3", "k3_ratio" or "k3_sequence_ratio" (see `dgpo.kl`).
        entropy_coef: coefficient of the entropy bonus; below 0 a penalty.
        entropy_aggregation: gives c_H; None takes `aggregation`, so that c_H = c.
        anchor: the policy that the ratio in w and φ is taken against: "old" is π_old, "rollout" the sampler μ. With
            "rollout", w(π_θ/μ) includes the difference of the sampler, and there is no ρ beside it.

    Arithmetic is float64 for a float64 `logprob`, float32 otherwise. Tensors may have any strides.

    Raises:
        ValueError: unknown names, shapes or devices that do not fit, a coefficient that is not finite or, for the KL
            term, below 0, a coefficient without the tensor it needs, a correction beside the anchor "rollout".
        TypeError: an argument that is not a tensor, of a dtype that does not fit, or not of the kind named above.
    """
    spec = LossSpec.of(
        objective=objective,
        aggregation=aggregation,
        correction=correction,
        anchor=anchor,
        kl=kl,
        kl_coef=kl_coef,
        entropy_coef=entropy_coef,
        entropy_aggregation=entropy_aggregation,
    )
    tokens = TokenBatch(logprob, old_logprob, advantage, mask, rollout_logprob=rollout_logprob, entropy=entropy)
    return loss_of(spec, tokens, totals=totals, entropy=entropy, ref_logprob=ref_logprob)


def loss_of(
    spec: LossSpec,
    tokens: TokenBatch,
    *,
    totals: StepTotals | None = None,
    entropy: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    statistics: bool = True,
) -> PolicyLoss:
    """`policy_loss` for a specification and a batch that are checked already.

    Args:
        spec: the factors and terms.
        tokens: the batch; its log-probs carry the gradient.
        totals, ref_logprob: as in `policy_loss`.
        entropy: [B, T] with gradient, for the bonus; `tokens.entropy`, which factors read, is detached.
        statistics: False leaves them out, which take more operations than the value.

    Raises:
        ValueError, TypeError: as `policy_loss`, for these arguments.
    """
    spec.check_call(totals, ref_logprob, ("logprob", tokens.mask.device))
    totals = totals or StepTotals.of(tokens.mask)
    c = spec.aggregation.coefficient(tokens.mask, totals, tokens.dtype)

    seen = tokens.anchored(spec.anchor)
    with torch.no_grad():
        # first: w, φ and the regions below are those of the calibrated bounds
        objective = spec.objective.calibrate(seen)
        w = torch.where(tokens.mask, objective.weight(seen), 0.0)
        phi = torch.where(tokens.mask, objective.potential(seen), 0.0)
        rho = None if spec.correction is None else spec.correction.factor(tokens)
        scale = -(c * tokens.advantage)
        scale = scale if rho is None else scale * rho
    # exp(0) - 1 = 0 leaves the value φ, and the gradient is w · ∇logprob
    step = (tokens.logprob - tokens.logprob.detach()).exp() - 1
    value = (scale * (phi + w * step)).sum()
    if objective.penalises:
        with torch.no_grad():
            kappa, slope = objective.penalty(seen)
            scale = c if rho is None else c * rho
        value = value + (scale * (kappa + slope * step)).sum()
    # checked even if kl_coef is 0 and nothing reads it
    reference = None if ref_logprob is None else tokens.masked("ref_logprob", ref_logprob)
    if spec.kl_coef != 0 and reference is not None:
        value = value + spec.kl_coef * (c * reference_kl(seen, reference, spec.kl)).sum()
    if spec.entropy_coef != 0:
        if entropy is None:
            raise ValueError(f"entropy_coef = {spec.entropy_coef} needs entropy [B, T], got None")
        if spec.entropy_aggregation is not None:
            c = spec.entropy_aggregation.coefficient(tokens.mask, totals, tokens.dtype)
        value = value - spec.entropy_coef * (c * tokens.masked("entropy", entropy)).sum()
    measured = _statistics(tokens, seen, objective, w) if statistics else {}
    return PolicyLoss(value=value, weight=w, statistics=measured)


@torch.no_grad()
def check_loss(
    loss: PolicyLoss,
    tokens: TokenBatch,
    objective: Objective,
    *,
    ref_logprob: Tensor | None = None,
    anchor: str = "old",
) -> None:
    """Raise if a loss is not finite, and say whether its batch or its objective is the reason.

    A NaN or an infinity in a weight makes the gradient NaN, and then the model. Costs one host synchronisation when all
    is well, the one of `check`, which this call replaces. Call it before `backward`.

    Args:
        loss: the result of `policy_loss` or `linear_policy_loss`.
        tokens: the batch that it was computed from.
        objective: that it was computed by.
        ref_logprob: [B, T] log-probs under the reference model, where a KL term reads them.
        anchor: as in `policy_loss`.

    Raises:
        NotFiniteError: as `check`; or names the method of the objective that returned the value, with the advantage and
            the ratio of the token; or says that the loss is not finite although its batch and its objective are.
    """
    # w, φ and a penalty are all in the value, which is not finite if one of them is not: 0 · inf is NaN
    value = loss.value.detach()
    if is_finite(tokens, ref_logprob) & value.isfinite():
        return
    check(tokens, ref_logprob)
    seen = tokens.anchored(anchor)
    returned = {"weight": [loss.weight]}
    if "batch" not in objective.reads:  # to calibrate is a collective, and the other ranks may be past it
        returned |= {"weight": [objective.weight(seen)], "potential": [objective.potential(seen)]}
        if objective.penalises:
            returned["penalty"] = list(objective.penalty(seen))
    for name, tensors in returned.items():
        for values in tensors:
            wrong = tokens.mask & ~values.isfinite()
            if wrong.any():
                row, column = (int(i) for i in wrong.nonzero()[0])
                raise NotFiniteError(
                    f"{type(objective).__name__}.{name} returned {values[row, column].item()} at "
                    f"A = {tokens.advantage[row, column].item():.4g}, r = {seen.ratio[row, column].item():.4g} (row "
                    f"{row}, column {column}; {int(wrong.sum())} of {int(tokens.mask.sum())} valid tokens); expected a "
                    "finite number for every finite log ratio, as dgpo.testing.check_objective tests"
                )
    raise NotFiniteError(
        f"the loss is {value.item()}, although its batch and the values of {type(objective).__name__} are finite: see "
        "the correction, the coefficients and, if there is one, the distance from the reference model"
    )


@torch.no_grad()
def _statistics(tokens: TokenBatch, seen: TokenBatch, objective: Objective, w: Tensor) -> dict[str, Tensor]:
    valid = tokens.mask
    count = valid.sum().clamp(min=1).to(w.dtype)
    size = w.abs()
    mass = (tokens.advantage * w).abs()
    total_mass = mass.sum()
    tiny = torch.finfo(w.dtype).tiny  # an empty share is 0, not 0/0

    # 0-d tensors from here on: reading one on the host would wait for the device
    where = regions(seen, objective.boundaries(seen))
    statistics = {f"fraction/{name}": region.sum() / count for name, region in where.items()}
    statistics |= {f"mass/{name}": (mass * region).sum() / total_mass.clamp(min=tiny) for name, region in where.items()}
    statistics["weight/mean"] = w.sum() / count
    # amax refuses an empty tensor, and of masked positions alone it would be -inf
    largest = torch.where(valid, w, -torch.inf).amax() if w.numel() else w.sum()
    statistics["weight/max"] = torch.where(valid.any(), largest, 0.0)
    statistics["weight/zero_fraction"] = ((w == 0) & valid).sum() / count
    # in units of the largest weight: the square of one above 1e19 is more than a float32 holds
    relative = size / size.amax().clamp(min=tiny) if size.numel() else size
    statistics["weight/ess"] = relative.sum().square() / (count * relative.square().sum()).clamp(min=tiny)
    # the estimators take the policy that the tokens are sampled from first
    statistics["kl/old"] = estimators.k3(tokens.old_logprob, tokens.logprob).sum() / count
    statistics["advantage/zero_fraction"] = ((tokens.advantage == 0) & valid).sum() / count
    if tokens.rollout_logprob is not None:
        pair = tokens.rollout_logprob, tokens.old_logprob
        statistics["kl/sampler"] = estimators.k3(*pair).sum() / count
        statistics["kl/sampler_k1"] = estimators.k1(*pair).sum() / count
        statistics["sampler/cut_mass"] = estimators.cut_mass(*pair).sum() / count
    return statistics
