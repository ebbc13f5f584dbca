"""GSPO: Group Sequence Policy Optimization (arXiv 2507.18071), in its token form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from dgpo.fields import number
from dgpo.objectives.frameworks import HIGH, LOW, Conformance
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2507.18071",
    title="Group Sequence Policy Optimization",
    authors=names(
        "Chujie Zheng, Shixuan Liu, Mingze Li, Xiong-Hui Chen, Bowen Yu, Chang Gao, Kai Dang, Yuqiong Liu, Rui Men, "
        "An Yang, Jingren Zhou, Junyang Lin"
    ),
    year=2025,
)

ELSEWHERE = {
    "trl": Conformance(
        setting={
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": LOW,
            "epsilon_high": HIGH,
        },
        aggregation="seq-mean-token-mean",
        averages={
            "dapo": "token-mean",
            "dr_grpo": "seq-mean-token-sum-norm",
            "luspo": "seq-mean-token-sum-norm:length=1",
            "bnpo": None,
        },
        note="there is no loss type of this name; the default `epsilon` of 0.2 is hundreds of times the paper's",
    ),
    "verl": Conformance(
        setting={"policy_loss.loss_mode": "gspo", "clip_ratio_low": LOW, "clip_ratio_high": HIGH},
        aggregation="seq-mean-token-mean",
        note="0.9.1 averages as `loss_agg_mode` says (token-mean unless set), 0.10.0.dev by seq-mean-token-mean. "
        "log s is clamped to at most 10",
    ),
    "skyrl": Conformance(
        setting={
            "policy_loss_type": "gspo",
            "eps_clip_low": LOW,
            "eps_clip_high": HIGH,
            "loss_reduction": "sequence_mean",
        },
        aggregation="seq-mean-token-mean",
        note="another `loss_reduction` gives a warning; log s is clamped to at most 10",
    ),
    "liger": Conformance(
        setting={
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_low": LOW,
            "epsilon_high": HIGH,
        },
        aggregation="seq-mean-token-mean",
    ),
}


@dataclass(frozen=True, kw_only=True)
class GSPO(HardClip):
    """A hard clip on one ratio per response.

    With s = exp(mean over the response of log r), lo = 1 - eps_low and hi = 1 + eps_high::

        left     A < 0, s < lo    w = 0    φ = lo
        right    A > 0, s > hi    w = 0    φ = hi
        else                      w = s    φ = s

    Every token of a response has the weight s; A may differ by token (GSPO-token, eq. 13-15), and the clip looks at
    the token's own A. The paper averages over tokens within a response and then over responses: use it with the
    aggregation `seq-mean-token-mean`, under which the gradient is that of the sequence objective.

    Args:
        eps_low: the left boundary is 1 - eps_low.
        eps_high: the right boundary is 1 + eps_high.

    Source: verl-project/verl@1dda039b verl/trainer/ppo/core_algos.py:1545-1617; defaults are the paper's. Deviation
    from that code: it clamps log s to at most 10, here every token's log ratio is clamped to ±20.
    """

    name = "gspo"
    papers = (PAPER,)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {
        "gspo_token": ", whose gradient is the same",
    }

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    eps_low: float = number(3e-4, "[0, 1)")
    eps_high: float = number(4e-4, "[0, inf)")

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        length = tokens.mask.sum(-1, keepdim=True).clamp(min=1)
        x = ((tokens.log_ratio * tokens.mask).sum(-1, keepdim=True) / length).expand_as(tokens.log_ratio)
        return Boundaries.at(x, math.log1p(-self.eps_low), math.log1p(self.eps_high))

    def properties(self) -> Properties:
        return Properties(continuous=False, upper_bound=math.inf, limit_negative=None, limit_positive=None)
