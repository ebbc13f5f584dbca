"""MASPO: Mass-Adaptive Soft Policy Optimization (arXiv 2602.17550)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import ACL_2026, Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2602.17550",
    title=(
        "MASPO: Unifying Gradient Utilization, Probability Mass, and Signal Reliability for "
        "Robust and Sample-Efficient LLM Reasoning"
    ),
    authors=names(
        "Xiaoliang Fu, Jiaye Lin, Yangyi Fang, Binbin Zheng, Chaowen Hu, Zekai Shao, Cong Qin, Lu Pan, Ke Zeng, "
        "Xunliang Cai"
    ),
    year=2026,
    venue="ACL 2026",
    book=ACL_2026,
    anthology="2026.acl-long.1918",
    pages="41348-41365",
    code="https://github.com/FlyTune/MASPO-RL",
)

ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance())


@dataclass(frozen=True, kw_only=True)
class MASPO(Objective):
    """A one-sided Gaussian gate on the ratio, which is wider for rare tokens and for confident advantages.

    With r the importance ratio and q = π_old of the token::

        A (r - 1) > 0    w = r · exp(-(r - 1)² / (2 s²))
        else             w = r

        s = clamp(sigma_base · q^-alpha, sigma_base, sigma_high) · clamp(risk, adv_low, adv_high)
        risk = 1 + beta_pos · A for A > 0,    1 / (1 - beta_neg · A) for A < 0

    The gate is detached (it multiplies the ratio and is not differentiated), so φ = w, which is what the authors log.

    Args:
        sigma_base: width of the gate for a token of probability 1.
        alpha: how fast the gate widens as q falls. The authors' README recommends 0.3, and says that 1.5B
            "can use" 0.5.
        beta_pos: widening with A > 0.
        beta_neg: narrowing with A < 0.
        sigma_high: in the authors' code but not in the paper: the widest gate, before the advantage is applied.
            It takes effect for q < 4.6e-4 (alpha 0.3) or q < 1e-2 (alpha 0.5); inf gives the paper's equation.
        adv_low: in the authors' code but not in the paper: lower bound of `risk`.
        adv_high: in the authors' code but not in the paper: upper bound of `risk`. A gate of width 0 would be a jump.

    Source: the paper's definition of the two widths, defaults from the authors' yaml; FlyTune/MASPO-RL@22b46814
    verl/trainer/ppo/core_algos.py:907-922. Deviations from that code: its `seq-mean-token-sum-norm` does not divide
    by the number of sequences (see `dgpo.aggregation`); beyond ±20 nats its clamp zeroes the gradient, here it is kept
    at the weight of ±20; q^-alpha is formed in log space, so that q = e^-700 does not overflow; a masked NaN makes its
    sequence-mean loss NaN, here masked positions do not exist.
    """

    name = "maspo"
    papers = (PAPER,)
    elsewhere = ELSEWHERE

    sigma_base: float = number(1.0, "(0, inf]")
    alpha: float = number(0.3, "[0, inf)")
    beta_pos: float = number(0.03, "[0, inf)")
    beta_neg: float = number(0.03, "[0, inf)")
    sigma_high: float = number(10.0, "[sigma_base, inf]")
    adv_low: float = number(0.1, "[0, adv_high]")
    adv_high: float = number(10.0, "(0, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio", "advantage_sign"}
        if self.alpha > 0:
            found.add("old_logprob")
        if self.beta_pos > 0 or self.beta_neg > 0:
            found.add("advantage_size")
        return frozenset(found)

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        if self.sigma_base == math.inf:  # a gate of infinite width leaves w = r
            return Boundaries.at(tokens.log_ratio)
        return Boundaries.at(tokens.log_ratio, 0.0, 0.0)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, advantage = tokens.log_ratio, tokens.advantage
        # in log space: q^-alpha overflows for a rare token before sigma_high bounds it
        log_width = (math.log(self.sigma_base) - self.alpha * tokens.old_logprob).clamp(
            math.log(self.sigma_base), math.log(self.sigma_high)
        )
        gain, loss = advantage.clamp(min=0.0), advantage.clamp(max=0.0)
        # gain or loss is 0, so this is the formula for the sign of A
        risk = ((1 + self.beta_pos * gain) / (1 - self.beta_neg * loss)).clamp(self.adv_low, self.adv_high)
        distance = torch.expm1(x)  # r - 1, exact near the policy that the step started from
        # the sign of x is that of r - 1
        gated = torch.where(advantage.sign() * x > 0, distance / (log_width.exp() * risk), 0.0)
        return (x - 0.5 * gated.square()).exp()

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=math.inf, limit_negative="finite", limit_positive="finite")
