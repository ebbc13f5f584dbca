"""P3O: the effective sample size of the batch in place of a clip range and a KL coefficient (arXiv 2605.12380)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.numerics import expm1_minus
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Penalty, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.objectives.ranks import summed
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class P3O(Objective):
    """The weight is capped by the effective sample size of the batch, and a penalty pulls the policy back to π_old.

    With r the importance ratio and, over the N valid tokens of the batch, ess = (Σ r)² / (N · Σ r²), in (0, 1]::

        r <= ess    w = r      φ = r
        r > ess     w = ess    φ = ess · (1 + log(r / ess))
        penalty     (1 - ess) · (1/r - 1 + log r)

    On an on-policy batch ess is 1, so there is no penalty and w = 1. The penalty is the k3 estimate of
    KL(π_θ ‖ π_old) from the sampled token, and also applies to tokens with A = 0.

    Args:
        ess: None until calibrated, then the normalised effective sample size of the batch.

    `calibrate` reads the batch it is given, of all ranks where torch.distributed is initialised, and costs one host
    synchronisation. Weight and penalty then depend on how the step was split into micro-batches, as in the authors'
    code. Uncalibrated, ess is 1.

    Source: FeynRL-project/FeynRL@4f7eafe0 algs/P3O/p3o.py:84-203, and compute_kl_distance in algs/RL/common.py:120;
    arXiv 2605.12380. Deviations: their Σ r² has 1e-8 added; the exponent of their 1/r is clamped to ±10, which turns
    the gradient of the penalty around below a log ratio of -10. They take the ratio against the sampler's log-probs;
    pass those as `old_logprob` to do the same.
    """

    name = "p3o"
    papers = (
        Paper(
            arxiv_id="2605.12380",
            title="Trust the Batch, On- or Off-Policy: Adaptive Policy Optimization for RL Post-Training",
            authors=("Rasool Fakoor", "Murdock Aubry", "Nicholas Stranges", "Alexander J. Smola"),
            year=2026,
            code="https://github.com/FeynRL-project/FeynRL",
        ),
    )
    elsewhere: ClassVar = dict.fromkeys(FRAMEWORKS, Conformance())

    ess: float | None = number(None, "(0, 1]")

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio"}
        if self.ess is None:
            found.add("batch")
        return frozenset(found)

    @property
    def penalises(self) -> bool:
        return self.ess != 1

    def calibrate(self, tokens: TokenBatch) -> Self:
        if self.ess is not None:
            return self
        # double: a sum over the whole batch, of squares up to e^40
        there = tokens.finite
        r = torch.where(there, tokens.ratio.detach().double(), 0.0)
        total, squares, count = summed(torch.stack([r.sum(), r.square().sum(), there.double().sum()])).tolist()
        return replace(self, ess=min(total * total / (squares * count), 1.0) if count else 1.0)

    @property
    def _cap(self) -> float:
        return 1.0 if self.ess is None else self.ess

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, high=math.log(self._cap))

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio.clamp(max=self._cap)

    def potential(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        # w is constant beyond the cap, so φ continues as a straight line in x
        inside = x.clamp(max=math.log(self._cap))
        return inside.exp() * (1 + (x - inside))

    def penalty(self, tokens: TokenBatch) -> Penalty:
        away = -tokens.log_ratio
        return Penalty((1 - self._cap) * expm1_minus(away), (self._cap - 1) * torch.expm1(away))

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=self._cap,
            unit_on_policy=self.ess == 1,
            limit_negative="finite",
            limit_positive="finite",
        )
