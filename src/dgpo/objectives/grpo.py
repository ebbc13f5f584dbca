"""GRPO: the clipped surrogate of PPO without a critic (arXiv 2402.03300), clip-higher and dual clip included."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dgpo.fields import number
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2402.03300",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    authors=(
        "Zhihong Shao",
        "Peiyi Wang",
        "Qihao Zhu",
        "Runxin Xu",
        "Junxiao Song",
        "Mingchuan Zhang",
        "Y. K. Li",
        "Y. Wu",
        "Daya Guo",
    ),
    year=2024,
)


@dataclass(frozen=True, kw_only=True)
class GRPO(HardClip):
    """The hard clip: the gradient of a token stops at the boundary.

    With r the importance ratio, lo = 1 - eps_low and hi = 1 + eps_high::

        left         A < 0, r < lo           w = 0    φ = lo
        right        A > 0, r > hi           w = 0    φ = hi
        dual clip    A < 0, r > dual_clip    w = 0    φ = dual_clip
        else                                 w = r    φ = r

    φ · A is the clipped surrogate min(r A, clip(r, lo, hi) A), under a dual clip max(·, dual_clip · A) for A < 0.

    Args:
        eps_low: 1 - eps_low is the lower bound of the ratio.
        eps_high: 1 + eps_high is the upper bound. DAPO's clip-higher is eps_high = 0.28 (arXiv 2503.14476).
        dual_clip: the ratio beyond which a token with A < 0 is dropped (arXiv 1912.09729). verl uses 3, DAPO recipes
            10; TRL's `delta` has this effect where delta >= 1 + eps_high.

    Defaults: eps 0.2 by convention (the GRPO paper states none), no dual clip as in the paper; DGPO's GRPO baseline
    runs with dual_clip = 3. Source: FlyTune/DGPO-RL@cc225d44 verl/trainer/ppo/core_algos.py:909-919. Deviation from
    that code: beyond ±20 nats the gradient is kept, at the weight of ±20, where verl's clamp zeroes it.
    """

    papers = (PAPER,)

    eps_low: float = number(0.2, "[0, 1)")
    eps_high: float = number(0.2, "[0, inf)")
    dual_clip: float | None = number(None, "(1, inf]")

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        return Boundaries.at(tokens.log_ratio, math.log1p(-self.eps_low), math.log1p(self.eps_high))

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=math.inf if self.dual_clip is None else max(self.dual_clip, 1 + self.eps_high),
            limit_negative="zero",
            limit_positive="finite",
        )
