"""GMPO: Geometric-Mean Policy Optimization (arXiv 2507.20673)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import Conformance, Of
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2507.20673",
    title="Geometric-Mean Policy Optimization",
    authors=names(
        "Yuzhong Zhao, Yue Liu, Junpeng Liu, Jingye Chen, Xun Wu, Yaru Hao, Tengchao Lv, Shaohan Huang, Lei Cui, "
        "Qixiang Ye, Fang Wan, Furu Wei"
    ),
    year=2025,
    code="https://github.com/callsys/GMPO",
)

ELSEWHERE = {
    "trl": Conformance(
        setting={"epsilon": Of(field="log_clip_low"), "epsilon_high": Of(field="log_clip_high")},
        aggregation="seq-mean-token-mean",
        note="a separate trainer, `trl.experimental.gmpo.GMPOTrainer`; both options are in log space there",
    ),
    "verl": Conformance(
        setting={
            "policy_loss.loss_mode": "geo_mean",
            "clip_ratio_low": Of(field="log_clip_low"),
            "clip_ratio_high": Of(field="log_clip_high"),
        },
        aggregation="seq-mean-token-mean",
        note="called `geo_mean`; both options are in log space here, and `loss_agg_mode` is not read: the average "
        "is over the responses of the micro-batch",
    ),
    "skyrl": Conformance(),
    "liger": Conformance(),
}


@dataclass(frozen=True, kw_only=True)
class GMPO(Objective):
    """The geometric mean of the token ratios of a response, each of them clipped in log space.

    With x = log r, and x~ = min(x, log_clip_high) for A > 0, max(x, -log_clip_low) for A < 0::

        g = exp(mean over the response of x~)
        w = g where x~ = x, 0 where the token is clipped        φ = g

    Every unclipped token of a response has the same weight. Use it with the aggregation `seq-mean-token-mean`, under
    which the gradient is that of the sequence objective A · g.

    Args:
        log_clip_low: in nats; the paper uses 0.4.
        log_clip_high: in nats; the paper uses 0.4.

    Source: callsys/GMPO@205b2bf4 train_zero_math_gmpo.py:675-700. verl's `geo_mean` reads `clip_ratio_low` and
    `clip_ratio_high` in log space as well, so its yaml's 0.2 is not a ratio of 0.8.
    """

    name = "gmpo"
    papers = (PAPER,)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {"geo_mean": ""}

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    log_clip_low: float = number(0.4, "[0, inf]")
    log_clip_high: float = number(0.4, "[0, inf]")

    def _clipped(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """x~ [B, T] and its mean over the response [B, 1]."""
        x = tokens.log_ratio
        negative, positive = x.clamp(min=-self.log_clip_low), x.clamp(max=self.log_clip_high)
        clipped = torch.where(tokens.advantage < 0, negative, torch.where(tokens.advantage > 0, positive, x))
        length = tokens.mask.sum(-1, keepdim=True).clamp(min=1)
        return clipped, (clipped * tokens.mask).sum(-1, keepdim=True) / length

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, -self.log_clip_low, self.log_clip_high)

    def weight(self, tokens: TokenBatch) -> Tensor:
        clipped, mean = self._clipped(tokens)
        # clamping returns x itself where it does not act: the comparison is exact
        return torch.where(clipped == tokens.log_ratio, mean.exp(), 0.0)

    def potential(self, tokens: TokenBatch) -> Tensor:
        clipped, mean = self._clipped(tokens)
        return mean.exp().expand_as(clipped)

    def properties(self) -> Properties:
        return Properties(
            continuous=min(self.log_clip_low, self.log_clip_high) == math.inf,
            upper_bound=math.inf,
            not_ratio_inside="every token that is not clipped has the geometric mean of its response",
            limit_negative=None,
            limit_positive=None,
        )
