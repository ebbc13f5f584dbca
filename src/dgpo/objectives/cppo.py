"""CPPO: a trust region on the probability that tightens as the prefix of a token drifts (arXiv 2606.10968)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

QUANTILE = 0.9
"""Of a response's divergences; it sets the budget of the response."""


@dataclass(frozen=True, kw_only=True)
class CPPO(Objective):
    """DPPO's bound in total variation, weighted by position and reduced by what earlier tokens have used up.

    For token t of T in its response, with r the importance ratio, π = π_θ and q = π_old::

        D_t = |π - q|                                      change of its probability
        p_t = 1 - (1 - position_min) · (t - 1)/(T - 1)     weight of its position, 1 for the first token
        b = clamp(90 % quantile of D_1 … D_T, budget_min, budget_max)
        d_t = min(delta, delta + Σ_{j<t} p_j · (b - D_j)) / p_t, at least 0

        left     A < 0, q - π > d_t    w = 0
        right    A > 0, π - q > d_t    w = 0
        else                           w = r

    φ = w. In t, T, the sum and the quantile, only the tokens of `mask` count.

    Args:
        delta: the bound of the first token, a difference of probabilities. The paper uses 0.15 for dense models and 0.2
            for a mixture of experts.
        position_min: weight of the last position. With 1, all positions have the same weight.
        budget_min: smallest limit on the average change of probability in a prefix, beyond which the bound shrinks. The
            paper uses 0.015 for both limits with the post-trained model.
        budget_max: largest such limit; the paper uses 2 · budget_min. With both at 1, no prefix shrinks the bound.

    Source: Tencent-Hunyuan/UniRL@30899fcf unirl/algorithms/cppo.py:43-101 and arXiv 2606.10968, eq. 8-11 and 22, with
    the divergence of the sampled token (Binary-TV), which the paper compares with that of the 20 likeliest. There the
    ratio is taken against the sampler's log-probs; pass those as `old_logprob` to do the same.
    """

    name = "cppo"
    papers = (
        Paper(
            arxiv_id="2606.10968",
            title="Beyond Uniform Token-Level Trust Region in LLM Reinforcement Learning",
            authors=names(
                "Renjie Mao, Xiangxin Zhou, Lvfang Tao, Yixin Ding, Yu Shi, Yongguang Lin, Yuheng Wu, Honglin Zhu, "
                "Qian Qiu, Wenxi Zhu"
            ),
            year=2026,
            code="https://github.com/Tencent-Hunyuan/UniRL",
        ),
    )
    elsewhere: ClassVar = dict.fromkeys(
        FRAMEWORKS, Conformance(note="without its budget and weights of positions it is `dppo_tv`, where that exists")
    )

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    delta: float = number(0.2, "(0, inf)")
    position_min: float = number(0.8, "(0, 1]")
    budget_min: float = number(0.02, "[0, budget_max]")
    budget_max: float = number(0.04, "[0, inf)")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "advantage_sign", "old_logprob", "response"})

    def _allowed(self, tokens: TokenBatch) -> Tensor:
        """d [B, T]: the largest change of its probability that a token may have."""
        valid = tokens.mask.to(tokens.dtype)
        before = valid.cumsum(-1) - valid
        last = (valid.sum(-1, keepdim=True) - 1).clamp(min=1)
        position = 1 - (1 - self.position_min) * before / last
        change = (tokens.old_logprob.exp() * torch.expm1(tokens.log_ratio)).abs()
        budget = _quantile(change, tokens.mask).clamp(self.budget_min, self.budget_max)
        left = position * (budget - change) * valid
        # the sum of differences: neither of the two sums, which grow with the response, is kept
        return (self.delta + (left.cumsum(-1) - left).clamp(max=0)).clamp(min=0) / position

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        # d/q, in log space: 1/q alone overflows for a rare token
        change = (self._allowed(tokens).log() - tokens.old_logprob).exp()
        return Boundaries(tokens.log_ratio, torch.log1p(-change.clamp(max=1)), torch.log1p(change))

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, low, high = self.boundaries(tokens)
        dropped = ((tokens.advantage < 0) & (x < low)) | ((tokens.advantage > 0) & (x > high))
        return torch.where(dropped, 0.0, x.exp())

    def properties(self) -> Properties:
        return Properties(
            # a probability cannot move by more than 1
            continuous=self.delta >= 1 and self.budget_min >= 1,
            upper_bound=math.inf,
            limit_negative=None,
            limit_positive=None,
        )


def _quantile(values: Tensor, mask: Tensor) -> Tensor:
    """[B, 1] of the values [B, T] where the mask is True, interpolated; 0 for a response without a token."""
    # `nanquantile` would do, but on the meta device torch decomposes it, which imports its compiler
    place = QUANTILE * (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
    below = place.long()
    # two columns more, so that there are always a place and the next; no quantile reaches beyond the last valid value
    ordered = torch.nn.functional.pad(torch.where(mask, values, torch.inf), (0, 2), value=torch.inf).sort(-1).values
    low, high = (ordered.gather(-1, i) for i in (below, below + 1))
    found = torch.where(place > below, low + (place - below) * (high - low), low)
    return torch.where(mask.any(-1, keepdim=True), found, 0.0)
