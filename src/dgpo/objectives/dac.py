"""DAC: the Dynamic Adaptive Clipping of DCPO (arXiv 2509.02333)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch

RATIO_CAP = 10.0
"""The upper bound never exceeds max(dual_clip, 10), as in the authors' code."""


PAPER = Paper(
    arxiv_id="2509.02333",
    title="DCPO: Dynamic Clipping Policy Optimization",
    authors=("Shihui Yang", "Chengfeng Dou", "Peidong Guo", "Kai Lu", "Qiang Ju", "Fei Deng", "Rihui Xin"),
    year=2025,
    code="https://github.com/lime-RL/DCPO",
)

ELSEWHERE = dict.fromkeys(FRAMEWORKS, Conformance())


@dataclass(frozen=True, kw_only=True)
class DAC(HardClip):
    """A hard clip whose bounds widen for rare tokens: |(r - 1) π_θ| <= eps.

    With r the importance ratio and q = π_old of the token::

        lo = 1/2 + 1/2 · sqrt(max(1 - 4 · eps_low / q, 0))
        hi = min(1/2 + 1/2 · sqrt(1 + 4 · eps_high / q), max(dual_clip, 10))

        left         A < 0, r < lo           w = 0    φ = lo
        right        A > 0, r > hi           w = 0    φ = hi
        dual clip    A < 0, r > dual_clip    w = 0    φ = dual_clip
        else                                 w = r    φ = r

    For q <= 4 · eps_low the lower bound is 1/2.

    Args:
        eps_low: how far a token may be pushed down, in units of probability mass.
        eps_high: how far a token may be pushed up, in units of probability mass.
        dual_clip: ratio beyond which a token with A < 0 is dropped; the authors' scripts run with 10.

    Source: lime-RL/DCPO@01787b0f core_algos.py:978-991 (bounds), :994 (loss); eps from its README and paper (its recipe
    runs with 0.2 and 0.28). Its `seq-mean-token-sum-norm` does not divide by the sequences, and its "only-token-mean"
    is the token mean over a micro-batch, where the README describes a sum of the responses' means. DCPO's smooth
    advantage standardisation is in `dgpo.advantages`.
    """

    name = "dac"
    papers = (PAPER,)
    guards = ("dual_clip",)
    elsewhere = ELSEWHERE
    aliases: ClassVar = {"dcpo": ", with the advantage 'smooth'"}

    eps_low: float = number(0.16, "[0, 1)")
    eps_high: float = number(0.2, "[0, inf)")
    dual_clip: float | None = number(None, "(1, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "advantage_sign", "old_logprob"})

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        # 4 eps / q; inf for a token so rare that it overflows, and then lo = 1/2, hi = the cap; 0 for eps = 0
        low, high = (
            (math.log(4 * eps) - tokens.old_logprob).exp() if eps > 0 else torch.zeros_like(tokens.old_logprob)
            for eps in (self.eps_low, self.eps_high)
        )
        # e^21 is beyond every ratio, and its square fits a float32
        highest = min(max(self.dual_clip or 0.0, RATIO_CAP), math.exp(MAX_LOG_RATIO + 1))
        # 1/2 ± 1/2 · sqrt(1 ± y) by their distance from 1: as sums they are 1 for every small y
        low = low.clamp(max=1)
        high = high.clamp(max=4 * highest * (highest - 1))  # where hi reaches the cap
        return Boundaries(
            tokens.log_ratio,
            torch.log1p(-0.5 * low / (1 + (1 - low).sqrt())),
            torch.log1p(0.5 * high / (1 + (1 + high).sqrt())),
        )

    def properties(self) -> Properties:
        return Properties(
            continuous=False,
            upper_bound=math.inf if self.dual_clip is None else max(self.dual_clip, RATIO_CAP),
            limit_negative="zero",
            limit_positive="finite",
        )
