"""CISPO: clipped importance-sampling weights (MiniMax-M1, arXiv 2506.13585), one-sided and two-sided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import HIGH, LOW, SKYRL_SUM, Conformance, Of
from dgpo.objectives.objective import Boundaries, Limit, Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2506.13585",
    title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    authors=("MiniMax",),
    year=2025,
    code="https://github.com/MiniMax-AI/MiniMax-M1",
)

CISPO_ELSEWHERE = {
    "trl": Conformance(
        setting={"loss_type": "cispo", "epsilon_high": Of(field="cap")},
        aggregation="token-mean",
        note="`epsilon_high` is here the absolute cap, not an offset: left unset it is `epsilon` = 0.2, and every "
        "weight is at most 0.2",
    ),
    "verl": Conformance(
        setting={
            "policy_loss.loss_mode": "cispo",
            "clip_ratio_low": 1.0,
            "clip_ratio_high": Of(field="cap", plus=-1),
        },
        aggregation="token-mean",
        note="verl's `cispo` is two-sided; `clip_ratio_low` from 1 on takes the lower bound away. Both are offsets",
    ),
    "skyrl": Conformance(
        setting={
            "policy_loss_type": "cispo",
            "cispo.cispo_eps_clip_low": 1.0,
            "cispo.cispo_eps_clip_high": Of(field="cap", plus=-1),
        },
        aggregation="token-mean",
        note="both are offsets, and it is two-sided: older defaults, 0 and 5, clip to 1 … 6, newer ones, 1 and 4, "
        "to 0 … 5. " + SKYRL_SUM,
    ),
    "liger": Conformance(
        setting={"loss_type": "cispo", "epsilon_high": Of(field="cap")},
        aggregation="token-mean",
        note="`epsilon_high` is the absolute cap, as in TRL",
    ),
}

ONE_SIDED = Conformance(
    note="`cispo` there has no lower bound: from eps_low = 1 on this is `cispo` with cap = 1 + eps_high"
)

CISPO_TWO_SIDED_ELSEWHERE = {
    "trl": ONE_SIDED,
    "verl": Conformance(
        setting={"policy_loss.loss_mode": "cispo", "clip_ratio_low": LOW, "clip_ratio_high": HIGH},
        aggregation="token-mean",
    ),
    "skyrl": Conformance(
        setting={"policy_loss_type": "cispo", "cispo.cispo_eps_clip_low": LOW, "cispo.cispo_eps_clip_high": HIGH},
        aggregation="token-mean",
        note=SKYRL_SUM,
    ),
    "liger": ONE_SIDED,
}


@dataclass(frozen=True, kw_only=True)
class CISPO(Objective):
    """The original CISPO: the weight is capped from above for either sign of A, and no token loses its gradient.

    With r the importance ratio::

        r <= cap    w = r      φ = r
        r > cap     w = cap    φ = cap · (1 + log(r / cap))

    Args:
        cap: the largest weight, absolute. MiniMax does not disclose its value; 5 is that of ScaleRL
            (arXiv 2510.13786) and of SkyRL after 0.3.0, which clips to 1 … 6.

    Source: arXiv 2506.13585, eq. 4-5, "we did not impose a lower bound". TRL and Liger implement it with
    `epsilon_high` as the cap itself (left at its default 0.2, every weight is at most 0.2); verl's `cispo` clips on
    both sides and is `CISPOTwoSided`, unless its `clip_ratio_low` is large.
    """

    name = "cispo"
    papers = (PAPER,)
    guards = ("cap",)
    elsewhere = CISPO_ELSEWHERE
    # ROLL's pg_variant "tis", which clips to 0 … 1 and is no correction
    aliases: ClassVar = {"tis_reinforce": " with cap=1"}

    cap: float = number(5.0, "[1, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio"})

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, high=math.log(self.cap))

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio.clamp(max=self.cap)

    def potential(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        # w is constant beyond the cap, so φ continues as a straight line in x
        inside = x.clamp(max=math.log(self.cap))
        return inside.exp() * (1 + (x - inside))

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=self.cap, limit_negative="finite", limit_positive="finite")


@dataclass(frozen=True, kw_only=True)
class CISPOTwoSided(Objective):
    """CISPO as in verl and in the DGPO paper: w = clip(r, 1 - eps_low, 1 + eps_high) for either sign of A.

    With lo = 1 - eps_low, hi = 1 + eps_high and bound the nearer of the two::

        lo <= r <= hi    w = r        φ = r
        else             w = bound    φ = bound · (1 + log(r / bound))

    The lower bound makes w/π diverge as π -> 0, which the original does not: this is the row "CISPO" of DGPO's
    figure 2.

    Args:
        eps_low: the weight is at least 1 - eps_low. From 1 on there is no lower bound.
        eps_high: the weight is at most 1 + eps_high.

    Source: verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:2046; defaults are verl's.
    """

    name = "cispo_two_sided"
    papers = (PAPER,)
    elsewhere = CISPO_TWO_SIDED_ELSEWHERE

    eps_low: float = number(0.2, "[0, inf)")
    eps_high: float = number(0.2, "[0, inf)")

    def _bounds(self) -> tuple[float, float]:
        # a lower bound of 0 or less is none, and has no logarithm
        return (math.log1p(-self.eps_low) if self.eps_low < 1 else -math.inf), math.log1p(self.eps_high)

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio"})

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, *self._bounds())

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.log_ratio.clamp(*self._bounds()).exp()

    def potential(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        inside = x.clamp(*self._bounds())
        return inside.exp() * (1 + (x - inside))

    def properties(self) -> Properties:
        limit: Limit = "infinite" if self.eps_low < 1 else "finite"
        return Properties(
            continuous=True,
            upper_bound=1 + self.eps_high,
            limit_negative=limit,
            limit_positive=limit,
        )
