"""GPPO and CE-GPPO: gradient-preserving clipping (arXiv 2508.07629, 2509.20712)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

CE_GPPO_PAPER = Paper(
    arxiv_id="2509.20712",
    title=(
        "CE-GPPO: Controlling Entropy via Gradient-Preserving Clipping Policy Optimization in Reinforcement Learning"
    ),
    authors=names("Zhenpeng Su, Leiyu Pan, Minxuan Lv, Yuntao Li, Wenping Hu, Fuzheng Zhang, Kun Gai, Guorui Zhou"),
    year=2025,
    code="https://github.com/Kwai-Klear/CE-GPPO",
)


GPPO_PAPER = Paper(
    arxiv_id="2508.07629",
    title=("Klear-Reasoner: Advancing Reasoning Capability via Gradient-Preserving Clipping Policy Optimization"),
    authors=names(
        "Zhenpeng Su, Leiyu Pan, Xue Bai, Dening Liu, Guanting Dong, Jiaming Huang, Wenping Hu, Fuzheng Zhang, "
        "Kun Gai, Guorui Zhou"
    ),
    year=2025,
    code="https://github.com/suu990901/KlearReasoner",
)

CE_GPPO_ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance(note="at beta1 = beta2 = 0 it is `grpo`"))

GPPO_ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance())


@dataclass(frozen=True, kw_only=True)
class GPPO(Objective):
    """Beyond the boundary, tokens keep the weight of the boundary: `CEGPPO` at beta1 = beta2 = 1.

    With r the importance ratio, lo = 1 - eps_low and hi = 1 + eps_high::

        left         A < 0, r < lo           w = lo    φ = lo · (1 + log(r / lo))
        right        A > 0, r > hi           w = hi    φ = hi · (1 + log(r / hi))
        dual clip    A < 0, r > dual_clip    w = 0     φ = dual_clip
        else                                 w = r     φ = r

    The right side is that of `DGPO(m=1)`; the left is DGPO's formula at n = -1, outside its range.

    Args:
        eps_low: the left boundary is 1 - eps_low.
        eps_high: the right boundary is 1 + eps_high; the authors' script runs with 0.28.
        dual_clip: ratio beyond which a token with A < 0 is dropped; the authors' script runs with 10.

    Source: suu990901/KlearReasoner@5d2d0b8c core_algos.py:444-523; defaults are its code's. Deviations as for `CEGPPO`.
    """

    name = "gppo"
    papers = (GPPO_PAPER,)
    guards = ("dual_clip",)
    elsewhere = GPPO_ELSEWHERE

    eps_low: float = number(0.2, "[0, 1)")
    eps_high: float = number(0.2, "[0, inf)")
    dual_clip: float | None = number(None, "(1, inf]")

    @property
    def beta1(self) -> float:
        """Scale of the weight on the left: 1, or a field of `CEGPPO`."""
        return 1.0

    @property
    def beta2(self) -> float:
        """Scale of the weight on the right: 1, or a field of `CEGPPO`."""
        return 1.0

    def _clipped(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """The log ratio nearest to the token's own inside the clip, and the scale of what lies beyond."""
        x, negative, positive = tokens.log_ratio, tokens.advantage < 0, tokens.advantage > 0
        log_lo, log_hi = math.log1p(-self.eps_low), math.log1p(self.eps_high)
        ceiling = math.inf if self.dual_clip is None else math.log(self.dual_clip)
        near = torch.where(negative, x.clamp(log_lo, ceiling), torch.where(positive, x.clamp(max=log_hi), x))
        left, right = (negative & (x < log_lo)).to(x.dtype), (positive & (x > log_hi)).to(x.dtype)
        return near, self._left_scale() * left + self.beta2 * right

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        both = Boundaries.at(tokens.log_ratio, math.log1p(-self.eps_low), math.log1p(self.eps_high))
        return both.capped(tokens.advantage < 0, self.dual_clip)

    def _left_scale(self) -> float:
        """beta1, or 0 where the dual clip drops what it leaves."""
        dropped = self.dual_clip is not None and self.beta1 * (1 - self.eps_low) > self.dual_clip
        return 0.0 if dropped else self.beta1

    def weight(self, tokens: TokenBatch) -> Tensor:
        near, beta = self._clipped(tokens)
        return near.exp() * torch.where(near == tokens.log_ratio, 1.0, beta)

    def potential(self, tokens: TokenBatch) -> Tensor:
        near, beta = self._clipped(tokens)
        # w is constant beyond the clip, so φ continues as a straight line in x
        return near.exp() * (1 + beta * (tokens.log_ratio - near))

    def properties(self) -> Properties:
        return Properties(
            continuous=self.beta1 == self.beta2 == 1 and self.dual_clip is None,
            upper_bound=math.inf
            if self.dual_clip is None
            else max(self.dual_clip, (1 + self.eps_high) * max(1.0, self.beta2)),
            limit_negative="infinite" if self._left_scale() > 0 else "zero",
            limit_positive="finite",
        )


@dataclass(frozen=True, kw_only=True)
class CEGPPO(GPPO):
    """Tokens beyond the clip range keep a constant weight on ∇log π, with one scale for each side (arXiv 2509.20712).

    With r the importance ratio, lo = 1 - eps_low and hi = 1 + eps_high::

        left         A < 0, r < lo           w = beta1 · lo    φ = lo · (1 + beta1 · log(r / lo))
        right        A > 0, r > hi           w = beta2 · hi    φ = hi · (1 + beta2 · log(r / hi))
        dual clip    A < 0, r > dual_clip    w = 0             φ = dual_clip
        else                                 w = r             φ = r

    Args:
        beta1: scale on the left. The authors run 0.5 (1.5B) and 0.75 (7B); their yaml says 0.25. At beta = 1 on
            both sides this is `GPPO`, at 0 it is `GRPO`.
        beta2: scale on the right.
        eps_low: the left boundary is 1 - eps_low.
        eps_high: the right boundary is 1 + eps_high.
        dual_clip: ratio beyond which a token with A < 0 is dropped; the authors' scripts run with 10.

    A dual clip below beta1 · lo drops every token on the left, as in the authors' code: their loss of a token with
    A < 0 is at most dual_clip · |A|, a constant.

    Source: Kwai-Klear/CE-GPPO@10558fe0 verl/trainer/ppo/core_algos.py:531-623. Deviations of that code: its
    `seq-mean-token-sum-norm` does not divide by the number of sequences; a ratio of 0 or inf gives NaN there,
    whatever the region. The auxiliary NLL on correct samples of its scripts is an option of a trainer and no part of w.
    """

    name = "ce_gppo"
    papers = (CE_GPPO_PAPER,)
    elsewhere = CE_GPPO_ELSEWHERE

    beta1: float = number(0.75, "[0, inf)")
    beta2: float = number(1.0, "[0, inf)")
