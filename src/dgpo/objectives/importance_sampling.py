"""IS: unclipped token-level importance sampling, the reference against which every bias is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dgpo.objectives.frameworks import NO_LIMIT, SKYRL_SUM, Conformance
from dgpo.objectives.objective import Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="1707.06347",
    title="Proximal Policy Optimization Algorithms",
    authors=("John Schulman", "Filip Wolski", "Prafulla Dhariwal", "Alec Radford", "Oleg Klimov"),
    year=2017,
)

ELSEWHERE = {
    "trl": Conformance(setting={"loss_type": "cispo", "epsilon_high": NO_LIMIT}, aggregation="token-mean"),
    "verl": Conformance(
        setting={"policy_loss.loss_mode": "cispo", "clip_ratio_low": 1.0, "clip_ratio_high": NO_LIMIT},
        aggregation="token-mean",
    ),
    "skyrl": Conformance(
        setting={"policy_loss_type": "importance_sampling"},
        aggregation="token-mean",
        note="no clamp of the log ratio. " + SKYRL_SUM,
    ),
    "liger": Conformance(setting={"loss_type": "cispo", "epsilon_high": NO_LIMIT}, aggregation="token-mean"),
}


@dataclass(frozen=True, kw_only=True)
class IS(Objective):
    """Unclipped importance sampling: the weight is the ratio itself, w = r and φ = r.

    It is unbiased for the token-level surrogate E_old[r A], which is itself a first-order approximation of the policy
    gradient because the states are those of π_old. Only the clamp of the log ratio bounds w.

    Source: importance sampling as in REINFORCE and in CPI, the unclipped surrogate of PPO (arXiv 1707.06347, eq. 6).
    """

    name = "is"
    papers = (PAPER,)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {
        "importance_sampling": "",
        "reinforce": ", and any other while every ratio is 1",
    }

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio"})

    def weight(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio

    def potential(self, tokens: TokenBatch) -> Tensor:
        return tokens.ratio

    def properties(self) -> Properties:
        return Properties(continuous=True, upper_bound=math.inf, limit_negative="finite", limit_positive="finite")
