"""SAPO: Soft Adaptive Policy Optimization (arXiv 2511.20347), and its one-sided variant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance, Of
from dgpo.objectives.maspo import PAPER as MASPO_PAPER
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2511.20347",
    title="Soft Adaptive Policy Optimization",
    authors=names(
        "Chang Gao, Chujie Zheng, Xiong-Hui Chen, Kai Dang, Shixuan Liu, Bowen Yu, An Yang, Shuai Bai, Jingren Zhou, "
        "Junyang Lin"
    ),
    year=2025,
)

NO_CURVE = 1e-9
"""Below it tanh(z) = z in every dtype: the next term is z³/3."""

TRL = Conformance(
    setting={
        "loss_type": "sapo",
        "sapo_temperature_pos": Of(field="tau_pos"),
        "sapo_temperature_neg": Of(field="tau_neg"),
    },
    aggregation="seq-mean-token-mean",
)

SAPO_ELSEWHERE = {
    "trl": TRL,
    "verl": Conformance(
        setting={
            "policy_loss.loss_mode": "sapo",
            "tau_pos": Of(field="tau_pos"),
            "tau_neg": Of(field="tau_neg"),
        },
        aggregation="seq-mean-token-mean",
        note="verl forces seq-mean-token-mean, whatever `loss_agg_mode` says, and reads the actor's temperatures, "
        "not those of `policy_loss`",
    ),
    "skyrl": Conformance(
        setting={
            "policy_loss_type": "sapo",
            "sapo.tau_pos": Of(field="tau_pos"),
            "sapo.tau_neg": Of(field="tau_neg"),
            "loss_reduction": "sequence_mean",
        },
        aggregation="seq-mean-token-mean",
        note="another `loss_reduction` gives a warning",
    ),
    "liger": TRL,
}

SAPO_UNILATERAL_ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance(note="`sapo` there gates on both sides"))


@dataclass(frozen=True, kw_only=True)
class SAPO(Objective):
    """A sigmoid gate on the ratio, on both sides of 1.

    With r the importance ratio, τ = tau_pos for A > 0 and tau_neg otherwise::

        w = r · sech²(τ (r - 1) / 2)
        φ = 1 + (2 / τ) · tanh(τ (r - 1) / 2)

    φ is the paper's (4/τ) · sigmoid(τ (r - 1)) less the constant 2/τ - 1, so that it goes to r as τ goes to 0.

    Args:
        tau_pos: steepness for A > 0; the paper uses 1.
        tau_neg: steepness otherwise; the paper uses 1.05.

    Source: verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:1621-1703. Deviation: autograd of that code loses
    w to cancellation for r >> 1 (exactly 0 for τ (r - 1) > 37, float64); here it is formed in log space.
    """

    name = "sapo"
    papers: ClassVar[tuple[Paper, ...]] = (PAPER,)
    elsewhere = SAPO_ELSEWHERE

    tau_pos: float = number(1.0, "(0, inf)")
    tau_neg: float = number(1.05, "(0, inf)")

    def _tau(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.advantage > 0, torch.full_like(tokens.advantage, self.tau_pos), self.tau_neg)

    def _half_distance(self, tokens: TokenBatch) -> Tensor:
        """τ (r - 1) / 2."""
        return 0.5 * self._tau(tokens) * torch.expm1(tokens.log_ratio)

    def weight(self, tokens: TokenBatch) -> Tensor:
        # in log space: for r >> 1 a large ratio times a gate that has underflowed would be 0
        return (tokens.log_ratio + _log_sech_squared(self._half_distance(tokens))).exp()

    def potential(self, tokens: TokenBatch) -> Tensor:
        z = self._half_distance(tokens)
        # 2/τ · tanh(z) as (r - 1) · tanh(z)/z, whose factors stay finite as τ goes to 0
        flat = z.abs() < NO_CURVE
        steepness = torch.where(flat, 1.0, z.tanh() / torch.where(flat, 1.0, z))
        return 1 + torch.expm1(tokens.log_ratio) * steepness

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=max(_peak(self.tau_pos), _peak(self.tau_neg)),
            not_ratio_inside="the sigmoid gate acts at every ratio but 1",
            limit_negative="finite",
            limit_positive="finite",
        )


@dataclass(frozen=True, kw_only=True)
class SAPOUnilateral(SAPO):
    """SAPO's gate, applied only if the token has moved along its advantage; from the ablation of the MASPO paper.

    With r the importance ratio, τ = tau_pos for A > 0 and tau_neg otherwise::

        A (r - 1) > 0    w = r · sech²(τ (r - 1) / 2)    φ = 1 + (2 / τ) · tanh(τ (r - 1) / 2)
        else             w = r                           φ = r

    Args:
        tau_pos: as for `SAPO`.
        tau_neg: as for `SAPO`.

    Source: arXiv 2602.17550, ablation (known to us at second hand: two-sided gating collapsed at 1.5B, one-sided gating
    did not). No code was released.
    """

    name = "sapo_unilateral"
    papers = (PAPER, MASPO_PAPER)
    elsewhere = SAPO_UNILATERAL_ELSEWHERE

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, 0.0, 0.0)

    def weight(self, tokens: TokenBatch) -> Tensor:
        gated = tokens.advantage.sign() * tokens.log_ratio > 0
        z = torch.where(gated, self._half_distance(tokens), 0.0)
        return (tokens.log_ratio + _log_sech_squared(z)).exp()

    def potential(self, tokens: TokenBatch) -> Tensor:
        gated = tokens.advantage.sign() * tokens.log_ratio > 0
        return torch.where(gated, super().potential(tokens), tokens.ratio)

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=math.inf, limit_negative="finite", limit_positive="finite")


def _log_sech_squared(z: Tensor) -> Tensor:
    """log sech²(z), without overflow: -2 log cosh(z)."""
    size = z.abs()
    return -2 * (size + softplus(-2 * size) - math.log(2))


def _peak(tau: float) -> float:
    """max over r of r · sech²(τ (r - 1) / 2); its log has the decreasing slope 1/r - τ tanh(τ (r - 1) / 2)."""
    low, high = 1.0, 2.0
    # bracket the root of the slope, then bisect
    while 1 / high > tau * math.tanh(tau * (high - 1) / 2):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 / middle > tau * math.tanh(tau * (middle - 1) / 2) else (low, middle)
    return high / math.cosh(tau * (high - 1) / 2) ** 2 * (1 + 1e-12)
