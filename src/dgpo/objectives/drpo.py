"""DRPO: a quadratic penalty on the ratio, weighted with the token's probability (arXiv 2606.09821)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2606.09821",
    title="Rethinking the Divergence Regularization in LLM RL",
    authors=("Jiarui Yao", "Xiangxin Zhou", "Penghui Qi", "Wee Sun Lee", "Liefeng Bo", "Tianyu Pang"),
    year=2026,
    code="https://github.com/Tencent-Hunyuan/UniRL",
)

ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance())


@dataclass(frozen=True, kw_only=True)
class DRPO(Objective):
    """The weight falls linearly in the change of probability; beyond delta it is negative and pulls the token back.

    With r the importance ratio, π = π_θ, q = π_old of the token and σ the sign of A::

        w = r · (1 - σ · (π - q) / delta)
        φ = r - σ · q · (r - 1)² / (2 · delta)

    φ · A is the paper's r A - |A| q (r - 1)² / (2 delta).

    Args:
        delta: a difference of probabilities. The authors' default 12.5 exceeds 1, which a probability cannot
            move by: w/r then stays in [0.92, 1.08], and w is practically importance sampling.

    Source: Tencent-Hunyuan/UniRL@1a7b501e unirl/algorithms/drpo.py:97. Deviation of that code: its token mean counts
    masked tokens in the denominator.
    """

    name = "drpo"
    papers = (PAPER,)
    elsewhere = ELSEWHERE

    # from 1e-20 on, the weight of a ratio of e^20 fits a float32
    delta: float = number(12.5, "[1e-20, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "advantage_sign", "old_logprob"})

    def weight(self, tokens: TokenBatch) -> Tensor:
        change = tokens.old_logprob.exp() * torch.expm1(tokens.log_ratio)  # π - q
        return tokens.ratio * (1 - tokens.advantage.sign() * change / self.delta)

    def potential(self, tokens: TokenBatch) -> Tensor:
        q, distance = tokens.old_logprob.exp(), torch.expm1(tokens.log_ratio)
        return tokens.ratio - tokens.advantage.sign() * q * distance.square() / (2 * self.delta)

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=math.inf,
            nonnegative=False,
            not_ratio_inside=None if self.delta == math.inf else "the penalty acts at every ratio but 1",
            limit_negative="finite",
            limit_positive="finite",
        )
