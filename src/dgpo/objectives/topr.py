"""TOPR: no ratio for A > 0, a ratio of at most 1 for A <= 0 (arXiv 2503.14286), by token and as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2503.14286",
    title="Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs",
    authors=(
        "Nicolas Le Roux",
        "Marc G. Bellemare",
        "Jonathan Lebensold",
        "Arnaud Bergeron",
        "Joshua Greaves",
        "Alex Fréchette",
        "Carolyne Pelletier",
        "Eric Thibodeau-Laufer",
        "Sándor Toth",
        "Sam Work",
    ),
    year=2025,
)

ONE_FOR_POSITIVE = "a token with A > 0 has 1 at every ratio"


@dataclass(frozen=True, kw_only=True)
class TOPR(Objective):
    """The weight is 1 for A > 0 at every ratio, and the ratio, but at most 1, for A < 0.

    With r the importance ratio of the token::

        A > 0           w = 1    φ = 1 + log r
        A <= 0, r > 1   w = 1    φ = 1 + log r
        else            w = r    φ = r

    No weight exceeds 1. Like `UP` without its clip: a token that is pushed down keeps w/π finite.

    Source: alibaba/ROLL@8eb27cc2 roll/pipeline/agentic/agentic_actor_pg_worker.py:260 (`pg_variant` "topr") and
    Trinity-RFT's topr_policy_loss.py (read in yanxi-chen/Trinity-RFT@5b77c089), with the sign of A. Deviations: both
    take the ratio of the token, where the paper has that of the response, as `TOPRSequence` does; ROLL decides by the
    sign of the reward, and has a coefficient for each sign.
    """

    name = "topr"
    papers = (PAPER,)
    elsewhere = dict.fromkeys(FRAMEWORKS, Conformance())

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio).capped(tokens.advantage <= 0, 1.0)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.advantage > 0, 1.0, tokens.log_ratio.clamp(max=0).exp())

    def potential(self, tokens: TokenBatch) -> Tensor:
        x = tokens.log_ratio
        tapered = x.clamp(max=0).exp() + x.clamp(min=0)
        return torch.where(tokens.advantage > 0, 1 + x, tapered)

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=1.0,
            not_ratio_inside=ONE_FOR_POSITIVE,
            limit_negative="finite",
            limit_positive="infinite",
        )


@dataclass(frozen=True, kw_only=True)
class TOPRSequence(Objective):
    """TOPR as published: the ratio is that of the response, the product over its tokens.

    With log W = sum over the response of log r::

        A > 0           w = 1
        A <= 0, W > 1   w = 1
        else            w = W

    φ = w. With the aggregation `seq-mean-token-sum-norm` and length=1 the gradient of a response is w · A · ∇log π of
    the whole of it, as in the paper, whose A is the reward, +1 or -1.

    A long response whose tokens have become less likely is practically dropped: 1000 tokens at r = 0.99 have W = 4e-5.

    Source: arXiv 2503.14286, eq. 8. No code of the authors was found.
    """

    name = "topr_sequence"
    papers = (PAPER,)
    elsewhere = dict.fromkeys(FRAMEWORKS, Conformance())

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    @staticmethod
    def _log_product(tokens: TokenBatch) -> Tensor:
        """log W [B, T], the same in a row."""
        total = (tokens.log_ratio * tokens.mask).sum(-1, keepdim=True)
        return total.expand_as(tokens.log_ratio)

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(self._log_product(tokens)).capped(tokens.advantage <= 0, 1.0)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.advantage > 0, 1.0, self._log_product(tokens).clamp(max=0).exp())

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=1.0,
            not_ratio_inside=ONE_FOR_POSITIVE,
            limit_negative=None,
            limit_positive=None,
        )
