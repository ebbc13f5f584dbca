"""GRPO: the clipped surrogate of PPO without a critic (arXiv 2402.03300), clip-higher and dual clip included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dgpo.fields import number
from dgpo.objectives.frameworks import HIGH, LOW, NO_LIMIT, SKYRL_SUM, Conformance, Of
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2402.03300",
    title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    authors=names(
        "Zhihong Shao, Peiyi Wang, Qihao Zhu, Runxin Xu, Junxiao Song, Mingchuan Zhang, Y. K. Li, Y. Wu, Daya Guo"
    ),
    year=2024,
)

ELSEWHERE = {
    "trl": Conformance(
        setting={"loss_type": "dapo", "epsilon": LOW, "epsilon_high": HIGH, "delta": Of(field="dual_clip")},
        aggregation="token-mean",
        averages={"grpo": "seq-mean-token-mean", "dr_grpo": "seq-mean-token-sum-norm", "bnpo": None},
        note="`delta` clamps the ratio for both signs of A: below 1 + eps_high it also lowers the bound for A > 0. "
        "`grpo`, `bnpo`, `dr_grpo` have the same weight and another average",
    ),
    "verl": Conformance(
        setting={
            "policy_loss.loss_mode": "vanilla",
            "clip_ratio_low": LOW,
            "clip_ratio_high": HIGH,
            "clip_ratio_c": Of(field="dual_clip", none=NO_LIMIT),
        },
        aggregation="token-mean",
        note="the dual clip is always on, at 3 unless set. `clip_ratio` counts only where the other two are unset. "
        "Beyond ±20 nats its clamp drops the gradient",
    ),
    "skyrl": Conformance(
        setting={
            "policy_loss_type": "dual_clip",
            "eps_clip_low": LOW,
            "eps_clip_high": HIGH,
            "clip_ratio_c": Of(field="dual_clip", none=NO_LIMIT),
        },
        aggregation="token-mean",
        note="`regular` is the plain clip, without `clip_ratio_c`. " + SKYRL_SUM,
    ),
    "liger": Conformance(
        setting={"loss_type": "dapo", "epsilon_low": LOW, "epsilon_high": HIGH, "delta": Of(field="dual_clip")},
        aggregation="token-mean",
        note="`delta` as in TRL; releases without it have no dual clip",
    ),
}


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

    name = "grpo"
    papers = (PAPER,)
    guards = ("dual_clip",)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {
        "ppo": "",
        "ppo_clip": "",
        "regular": "",
        "vanilla": " with dual_clip=3",
        "dual_clip": " with dual_clip",
        "bnpo": "; its average over a micro-batch is not a method, see the aggregations",
        "reinforce++": "; nearest to its advantage is scale_rewards='batch'",
        "reinforce_plus_plus": "; nearest to its advantage is scale_rewards='batch'",
        "lite_ppo": " with scale_rewards='batch'",
    }

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
