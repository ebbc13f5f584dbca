"""UP: REINFORCE without a ratio for A > 0, the clipped surrogate for A <= 0 (arXiv 2607.06987)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2607.06987",
    title="UP: Unbounded Positive Asymmetric Optimization for Breaking the Exploration-Stability Dilemma",
    authors=("Chongyu Fan", "Pengfei Liu", "Jingjia Huang", "Sijia Liu", "Yi Lin"),
    year=2026,
)


@dataclass(frozen=True, kw_only=True)
class UP(HardClip):
    """The weight is 1 for A > 0 at every ratio; tokens with A < 0 are clipped as in `GRPO`.

    With r the importance ratio and lo = 1 - eps_low::

        A > 0                                w = 1    φ = 1 + log r
        left         A < 0, r < lo           w = 0    φ = lo
        dual clip    A < 0, r > dual_clip    w = 0    φ = dual_clip
        else                                 w = r    φ = r

    For A > 0 the weight on ∇π is 1/π, so a correct token counts more the less likely it is now, however likely it was
    when it was sampled. An upper bound of the clip would have no effect.

    Args:
        eps_low: the lower bound of the ratio is 1 - eps_low.
        dual_clip: the ratio beyond which a token with A < 0 is dropped; verl's proposed loss has its usual 3.

    Source: arXiv 2607.06987, eq. 14-15, as implemented for TRL, huggingface/trl@d8415581 (pull request 6579)
    trl/experimental/up/up_trainer.py, whose `delta` is the dual clip; verl's is its pull request 7022. Both were open
    when we read them. The paper's UP-GSPO, with the ratio of the response for A <= 0, is not implemented.
    """

    name = "up"
    papers = (PAPER,)
    guards = ("dual_clip",)
    elsewhere = dict.fromkeys(FRAMEWORKS, Conformance(note="not in this version"))
    aliases: ClassVar = {"up_grpo": ""}

    eps_low: float = number(0.2, "[0, 1)")
    dual_clip: float | None = number(None, "(1, inf]")

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, math.log1p(-self.eps_low))

    def weight(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.advantage > 0, 1.0, super().weight(tokens))

    def potential(self, tokens: TokenBatch) -> Tensor:
        return torch.where(tokens.advantage > 0, 1 + tokens.log_ratio, super().potential(tokens))

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=math.inf if self.dual_clip is None else self.dual_clip,
            not_ratio_inside="a token with A > 0 has 1 at every ratio",
            limit_negative="zero",
            limit_positive="infinite",
        )
