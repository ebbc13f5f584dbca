"""VESPO: a smooth weight on the product of a response's ratios (arXiv 2602.10693)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import Conformance, Of
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch

MIN_LOG_PRODUCT = math.log(1e-8)
"""The authors' floor of log W."""

LARGEST_LOG_WEIGHT = 80
"""A float32 ends at e^88."""


PAPER = Paper(
    arxiv_id="2602.10693",
    title="VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training",
    authors=("Guobin Shen", "Chenxiao Zhao", "Xiang Cheng", "Lei Huang", "Xing Yu"),
    year=2026,
    code="https://github.com/FloyedShen/VESPO",
)

LIGER = Conformance(
    setting={
        "loss_type": "vespo",
        "vespo_k_pos": Of(field="k_pos"),
        "vespo_lambda_pos": Of(field="lambda_pos"),
        "vespo_k_neg": Of(field="k_neg"),
        "vespo_lambda_neg": Of(field="lambda_neg"),
    },
    aggregation="token-mean",
)

ELSEWHERE = {
    "trl": replace(
        LIGER, note="with vLLM, TRL folds its sampler correction into W; a correction here multiplies w instead"
    ),
    "verl": Conformance(),
    "skyrl": Conformance(),
    "liger": LIGER,
}


@dataclass(frozen=True, kw_only=True)
class VESPO(Objective):
    """Every token of a response has the weight of its whole trajectory, a gamma-shaped function of the product W.

    With log W = sum over the response of log r, in [log 1e-8, 20], and k, λ by the sign of A (A = 0 counts as
    positive)::

        w = exp(λ + k · log W - λ · W)        1 on-policy, 0 for W far from 1 on either side

    φ = w, because no closed form has this derivative.

    Args:
        k_pos: power for A >= 0.
        lambda_pos: rate of the decay for A >= 0.
        k_neg: power for A < 0.
        lambda_neg: rate of the decay for A < 0.

    Source: FloyedShen/VESPO@aa1f3045 recipe/vespo/code/core_algos.py:39; defaults are TRL's and the code's (the
    docstring of that code names others: 1.5, 4, 2.5). Its `seq-mean-token-sum-norm` does not divide by the sequences.
    """

    name = "vespo"
    papers = (PAPER,)
    elsewhere = ELSEWHERE

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    k_pos: float = number(2.0, "[0, inf)")
    lambda_pos: float = number(3.0, "(0, inf)")
    k_neg: float = number(3.0, "[0, inf)")
    lambda_neg: float = number(2.0, "(0, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for sign, highest in (
            ("pos", self._log_peak(self.k_pos, self.lambda_pos)),
            ("neg", self._log_peak(self.k_neg, self.lambda_neg)),
        ):
            # refused here: an infinite weight would reach the gradient without an error
            if highest > LARGEST_LOG_WEIGHT:
                raise ValueError(
                    f"VESPO: k_{sign} and lambda_{sign} give weights up to e^{highest:.0f}, more than a float32 holds; "
                    f"expected at most e^{LARGEST_LOG_WEIGHT}"
                )

    @staticmethod
    def _log_peak(k: float, rate: float) -> float:
        """Log of the largest weight over the range of log W, reached at W = k/λ."""
        x = min(max(math.log(k) - math.log(rate) if k > 0 else -math.inf, MIN_LOG_PRODUCT), MAX_LOG_RATIO)
        return k * x - rate * math.expm1(x)

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(self._log_product(tokens).expand_as(tokens.log_ratio))

    @staticmethod
    def _log_product(tokens: TokenBatch) -> Tensor:
        """log W [B, 1]."""
        return (tokens.log_ratio * tokens.mask).sum(-1, keepdim=True).clamp(MIN_LOG_PRODUCT, MAX_LOG_RATIO)

    def weight(self, tokens: TokenBatch) -> Tensor:
        x = self._log_product(tokens)
        excess = torch.expm1(x)  # W - 1, exact near the policy that the step started from
        positive = self.k_pos * x - self.lambda_pos * excess
        negative = self.k_neg * x - self.lambda_neg * excess
        return torch.where(tokens.advantage >= 0, positive, negative).exp()

    def properties(self) -> Properties:
        highest = max(self._log_peak(self.k_pos, self.lambda_pos), self._log_peak(self.k_neg, self.lambda_neg))
        return Properties(
            continuous=True,
            upper_bound=math.exp(highest) * (1 + 1e-6),
            not_ratio_inside="a smooth function of the product weighs it at every value",
            limit_negative=None,
            limit_positive=None,
        )
