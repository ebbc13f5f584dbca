"""ASPO: Asymmetric Importance Sampling Policy Optimization (Archer2.0, arXiv 2510.06062)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2510.06062",
    title="ASPO: Asymmetric Importance Sampling Policy Optimization",
    authors=("Jiakang Wang", "Runze Liu", "Lei Lin", "Wenping Hu", "Xiu Li", "Fuzheng Zhang", "Guorui Zhou", "Kun Gai"),
    year=2025,
    code="https://github.com/wizard-III/Archer2.0",
)

ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance())


@dataclass(frozen=True, kw_only=True)
class ASPO(Objective):
    """For A > 0 the ratio is inverted, so tokens whose probability has fallen are pulled up harder.

    With r the importance ratio, lo = 1 - eps_low, hi = 1 + eps_high, cp = dual_clip_pos and cn = dual_clip_neg::

        A > 0    r > hi         w = 0            φ = 2 - 1/hi
                 r >= 1/cp      w = 1/r          φ = 2 - 1/r
                 r < 1/cp       w = cp           φ = 2 - cp · (1 - log(r · cp))
        A < 0    r < lo         w = 0            φ = lo
                 r <= cn        w = r            φ = r
                 r > cn         w = cn           φ = cn · (1 + log(r / cn))

    As in the authors' code, the dual clip is soft: it caps the weight and keeps the gradient.

    Args:
        eps_low: lo of tokens with low entropy.
        eps_high: hi of tokens with low entropy.
        dual_clip_pos: cap of the flipped ratio; inf for none.
        dual_clip_neg: cap of the ratio; inf for none.
        entropy_quantile: None is off; the authors use 0.8: tokens whose entropy exceeds this quantile of their response
            take the two bounds below. Needs `entropy`, which the trainer always passes.
        eps_low_high_entropy: eps_low of tokens with high entropy; the authors use 0.4.
        eps_high_high_entropy: eps_high of tokens with high entropy; the authors use 0.4.

    Source: wizard-III/Archer2.0@b08d963d core_algos.py:537-583, entropy mask dp_actor.py:404-424 (where a variable
    named `high_entropy_mask` is True for *low* entropy). Its `seq-mean-token-sum-norm` does not divide by the
    sequences.

    Raises:
        ValueError: `entropy_quantile` is set and the tokens carry no entropy.
    """

    name = "aspo"
    papers = (PAPER,)
    guards = ("dual_clip_neg",)
    elsewhere = ELSEWHERE

    eps_low: float = number(0.2, "[0, 1)")
    eps_high: float = number(0.2, "[0, inf)")
    dual_clip_pos: float = number(3.0, "(1, inf]")
    dual_clip_neg: float = number(3.0, "(1, inf]")
    entropy_quantile: float | None = number(None, "(0, 1)")
    eps_low_high_entropy: float = number(0.4, "[0, 1)")
    eps_high_high_entropy: float = number(0.4, "[0, inf)")

    @property
    def reads(self) -> frozenset[Read]:
        if self.entropy_quantile is None:
            return super().reads
        return frozenset({"ratio", "advantage_sign", "entropy", "response"})

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        log_lo, log_hi = self._bounds(tokens)
        # the cap of the flipped ratio is a lower bound on r
        log_lo = torch.where(tokens.advantage > 0, log_lo.clamp(min=-math.log(self.dual_clip_pos)), log_lo)
        return Boundaries(tokens.log_ratio, log_lo, log_hi).capped(tokens.advantage < 0, self.dual_clip_neg)

    def _bounds(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """log lo and log hi of every token."""
        x = tokens.log_ratio
        log_lo, log_hi = torch.full_like(x, math.log1p(-self.eps_low)), torch.full_like(x, math.log1p(self.eps_high))
        if self.entropy_quantile is None:
            return log_lo, log_hi
        assert tokens.entropy is not None  # the contract refuses such a batch
        if not x.numel():  # `nanquantile` refuses an empty batch
            return log_lo, log_hi
        # NaN, so that padding does not enter the quantile of the response
        entropy = torch.where(tokens.mask, tokens.entropy, torch.nan)
        uncertain = tokens.entropy > entropy.nanquantile(self.entropy_quantile, dim=-1, keepdim=True)
        return (
            torch.where(uncertain, math.log1p(-self.eps_low_high_entropy), log_lo),
            torch.where(uncertain, math.log1p(self.eps_high_high_entropy), log_hi),
        )

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, (log_lo, log_hi) = tokens.log_ratio, self._bounds(tokens)
        positive = torch.where(x <= log_hi, (-x).exp().clamp(max=self.dual_clip_pos), 0.0)
        negative = torch.where(x >= log_lo, x.exp().clamp(max=self.dual_clip_neg), 0.0)
        return torch.where(tokens.advantage > 0, positive, negative)

    def potential(self, tokens: TokenBatch) -> Tensor:
        x, (log_lo, log_hi) = tokens.log_ratio, self._bounds(tokens)
        # beyond a cap w is constant, so φ continues as a straight line in x; beyond a clip it is constant itself
        above = torch.minimum(x, log_hi)
        curved = above.clamp(min=-math.log(self.dual_clip_pos))
        positive = 2 - (-curved).exp() * (1 - (above - curved))
        below = torch.maximum(x, log_lo)
        curved = below.clamp(max=math.log(self.dual_clip_neg))
        negative = curved.exp() * (1 + (below - curved))
        return torch.where(tokens.advantage > 0, positive, negative)

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=max(self.dual_clip_pos, self.dual_clip_neg),
            not_ratio_inside="for A > 0 the ratio is inverted: w = 1/r",
            limit_negative="zero",
            limit_positive="infinite",
        )
