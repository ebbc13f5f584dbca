"""DRO: REINFORCE with a quadratic penalty on the log ratio (arXiv 2405.19107), as Tinker and verl have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import Conformance, Of
from dgpo.objectives.objective import Objective, Penalty, Properties, Read
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2405.19107",
    title="Offline Regularised Reinforcement Learning for Large Language Models Alignment",
    authors=names(
        "Pierre Harvey Richemond, Yunhao Tang, Daniel Guo, Daniele Calandriello, Mohammad Gheshlaghi Azar, "
        "Rafael Rafailov, Bernardo Avila Pires, Eugene Tarassov, Lucas Spangher, Will Ellsworth, Aliaksei Severyn, "
        "Jonathan Mallinson, Lior Shani, Gil Shamir, Rishabh Joshi, Tianqi Liu, Remi Munos, Bilal Piot"
    ),
    year=2024,
)

ELSEWHERE = {
    "trl": Conformance(),
    "verl": Conformance(
        setting={"policy_loss.loss_mode": "dro", "policy_loss.dro_beta": Of(field="beta")},
        aggregation="token-mean",
        note="without a default; 0 is refused. The log ratio is not clamped",
    ),
    "skyrl": Conformance(),
    "liger": Conformance(),
}


@dataclass(frozen=True, kw_only=True)
class DRO(Objective):
    """The weight does not contain the ratio; a penalty pulls the policy back to the one that sampled.

    With r the importance ratio::

        w = 1        φ = 1 + log r        penalty  beta/2 · (log r)²

    φ · A less the penalty is A · log π - beta/2 · (log r)² up to a constant. A token with A = 0 is pulled back as well.

    Args:
        beta: coefficient of the penalty; 0 is REINFORCE without importance sampling. 0.05 is the value of the example
            in Tinker's documentation; verl has no default, and ROLL's `kimi15_tau` is 0.1.

    Source: Tinker's documentation of the loss `dro`; verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:2014.
    The paper's A is R - V with a learned V, one per response, and its log ratio that of the response. Token by token it
    is also the loss of Kimi k1.5 (arXiv 2501.12599), `kimi15` in alibaba/ROLL.
    """

    name = "dro"
    papers = (PAPER,)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {"kimi15": ""}

    beta: float = number(0.05, "[0, inf)")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio"}) if self.beta > 0 else frozenset()

    @property
    def penalises(self) -> bool:
        return self.beta > 0

    def penalty(self, tokens: TokenBatch) -> Penalty:
        return Penalty.quadratic(tokens, self.beta)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.ones_like(tokens.log_ratio)

    def potential(self, tokens: TokenBatch) -> Tensor:
        return 1 + tokens.log_ratio

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=1.0,
            not_ratio_inside="it is 1 at every ratio",
            limit_negative="infinite",
            limit_positive="infinite",
        )
