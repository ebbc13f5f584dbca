"""How far an objective is from unclipped importance sampling, token by token.

With E_old over tokens of the old policy, the unclipped estimate E_old[A·r·∇log π] is unbiased for the gradient of the
token-level surrogate E_old[r·A]. Any other weight w is off by E_old[A·(w - r)·∇log π].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dgpo import objectives
from dgpo.objectives import Objective
from dgpo.regions import REGIONS, regions
from dgpo.tokens import TokenBatch

Number = TypeVar("Number", float, Tensor)


def power_bias(u: Number, exponent: float, scale: float = 1.0) -> Number:
    """abs(w - r) / b at a boundary b, for a weight w = scale · b · u^λ with u = r/b: abs(scale · u^λ - u).

    Args:
        u: > 0; below 1 on the left, above 1 on the right.
        exponent: λ. n + 1 and 1 - 1/m give u(1 - u^n) and u(1 - u^(-1/m)); 0 a constant weight, abs(scale - u); a hard
            clip is +inf on the left and -inf on the right, u.
        scale: >= 0.
    """
    gap: Number = abs(scale * u**exponent - u)
    return gap


@dataclass(frozen=True, kw_only=True)
class RegionBias:
    """abs(w - r) over the tokens of one region.

    Attributes:
        tokens: number of tokens.
        mean: mean of abs(w - r); 0 without tokens.
        mass: Σ abs(A · (w - r))·N.
        share: of that sum over all regions; 0 if that is 0.
        relative: mass / Σ abs(A)·r·N of the region; 0 if that is 0.
    """

    tokens: int
    mean: float
    mass: float
    share: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class PointwiseBias:
    """abs(w - r) of a batch.

    Attributes:
        relative: Σ abs(A · (w - r))·N / Σ abs(A)·r·N. By the triangle inequality its numerator bounds the length of the
            batch's Σ A · (w - r) · ∇log π in the logits.
        regions: name of the region -> its part.
    """

    relative: float
    regions: dict[str, RegionBias]


@torch.no_grad()
def pointwise_bias(
    tokens: TokenBatch, objective: str | Objective, *, norm: Tensor | None = None, reference: str | Objective = "is"
) -> PointwiseBias:
    """abs(w - r) of a batch, by region of the objective.

    Args:
        tokens: the batch; an adaptive objective is calibrated on it.
        objective: a registered name, or an objective.
        norm: [B, T] N, the length of ∇log π in the logits; None means 1 for every token.
        reference: objective whose weight is used as r.

    Raises:
        ValueError: if a name is unknown, or `norm` has another shape.
    """
    method, yardstick = (made(which).calibrate(tokens) for which in (objective, reference))
    w, r = method.weight(tokens), yardstick.weight(tokens)
    if norm is not None and norm.shape != tokens.mask.shape:
        raise ValueError(f"norm has shape {tuple(norm.shape)}; expected {tuple(tokens.mask.shape)}, that of logprob")
    scale = tokens.advantage.abs() if norm is None else tokens.advantage.abs() * norm.to(tokens.dtype)
    scale = torch.where(tokens.mask, scale, 0.0).double()
    gap = (w - r).abs().double()
    where = regions(tokens, method.boundaries(tokens))
    # [regions, B, T]
    masks = torch.stack([where[name] for name in REGIONS]).double()

    def sums(values: Tensor) -> list[float]:
        found: list[float] = (masks * values).sum((1, 2)).tolist()
        return found

    counts, gaps, masses, kept = sums(torch.ones_like(gap)), sums(gap), sums(scale * gap), sums(scale * r.abs())
    total = sum(masses)
    found = {
        name: RegionBias(
            tokens=round(counts[i]),
            mean=_ratio(gaps[i], counts[i]),
            mass=masses[i],
            share=_ratio(masses[i], total),
            relative=_ratio(masses[i], kept[i]),
        )
        for i, name in enumerate(REGIONS)
    }
    return PointwiseBias(relative=_ratio(total, sum(kept)), regions=found)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def made(which: str | Objective) -> Objective:
    """The objective itself, or the one of that name."""
    return objectives.make(which) if isinstance(which, str) else which
