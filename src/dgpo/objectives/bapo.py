"""BAPO: Balanced Policy Optimization with Adaptive Clipping (arXiv 2510.18927), by its code and by its paper."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties, Read
from dgpo.objectives.paper import Paper, names
from dgpo.objectives.ranks import summed
from dgpo.tokens import TokenBatch

MOST_STEPS = 10_000
"""Bounds that a search may try on one side: each is a sum over the whole batch."""

_SLACK = 1e-9
"""Tolerance at the end of a range of bounds, so that rounding in 0.6, 0.65, ... does not add 0.9 twice."""


PAPER = Paper(
    arxiv_id="2510.18927",
    title=(
        "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy "
        "Optimization with Adaptive Clipping"
    ),
    authors=names(
        "Zhiheng Xi, Xin Guo, Yang Nan, Enyu Zhou, Junrui Shen, Wenxiang Chen, Jiaqi Liu, Jixuan Huang, Zhihao Zhang, "
        "Honglin Guo, Xun Deng, Zhikai Lei, Miao Zheng, Guoteng Wang, Shuo Zhang, Peng Sun, Rui Zheng, Hang Yan, "
        "Tao Gui, Qi Zhang, Xuanjing Huang"
    ),
    year=2025,
    code="https://github.com/WooooDyy/BAPO",
)

ELSEWHERE = dict.fromkeys(
    FRAMEWORKS,
    Conformance(
        note="no search for bounds; once calibrated, its weight is that of `grpo` with lower bound c_low and upper "
        "c_high"
    ),
)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip(HardClip):
    """A hard clip whose bounds are searched for in every batch; base of the two versions of BAPO."""

    c_low: float | None = number(None, "(0, 1]")
    c_high: float | None = number(None, "[1, inf)")
    c_low_start: float = number(0.6, "(0, c_low_max]")
    c_low_max: float = number(0.9, "(0, 1]")
    c_low_step: float = number(0.05, "(0, inf)")
    c_high_start: float = number(1.2, "[1, c_high_max]")
    c_high_max: float = number(3.0, "[1, inf)")
    c_high_step: float = number(0.05, "(0, inf)")
    dual_clip: float | None = number(None, "(1, inf]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.c_low is None) != (self.c_high is None):
            raise ValueError(
                f"{type(self).__name__}: c_low = {self.c_low!r} and c_high = {self.c_high!r}; expected both or neither"
            )
        for side, start, end, step in (
            ("low", self.c_low_start, self.c_low_max, self.c_low_step),
            ("high", self.c_high_start, self.c_high_max, self.c_high_step),
        ):
            if end - start > MOST_STEPS * step:
                raise ValueError(
                    f"{type(self).__name__}: c_{side}_step = {step!r} makes too many bounds from {start:g} to {end:g}; "
                    f"expected at least {(end - start) / MOST_STEPS:g}"
                )

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio", "advantage_sign"}
        if self.c_low is None:
            found.add("batch")
        return frozenset(found)

    @abstractmethod
    def _mass(self, tokens: TokenBatch) -> Tensor:
        """[B, T] >= 0: mass of a token, which its bounded ratio multiplies."""

    @abstractmethod
    def _search(self, positive: list[float], negative: list[float]) -> tuple[int, int]:
        """Indices of c_low and c_high, from P for every candidate c_high and N for every candidate c_low."""

    def calibrate(self, tokens: TokenBatch) -> Self:
        if self.c_low is not None:
            return self
        lows = _ladder(self.c_low_start, self.c_low_max, self.c_low_step)
        highs = _ladder(self.c_high_start, self.c_high_max, self.c_high_step)
        low, high = self._search(*self._contributions(tokens, lows, highs))
        # a copy that carries its bounds: every chunk of the fused loss uses the same ones
        return replace(self, c_low=lows[low], c_high=highs[high])

    def _contributions(
        self, tokens: TokenBatch, lows: list[float], highs: list[float]
    ) -> tuple[list[float], list[float]]:
        """P and N over all ranks, with one host synchronisation."""
        r, mass = tokens.ratio.detach(), self._mass(tokens)
        gain, loss = torch.where(tokens.advantage > 0, mass, 0.0), torch.where(tokens.advantage < 0, mass, 0.0)
        # every candidate at once: one reduction and one synchronisation, and the search needs neither
        sums = torch.stack(
            [(r.clamp(max=high) * gain).sum() for high in highs] + [(r.clamp(min=low) * loss).sum() for low in lows]
        )
        # the number of sums is the same on every rank, as it follows from the fields
        values = summed(sums).tolist()
        return values[: len(highs)], values[len(highs) :]

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        low = self.c_low_start if self.c_low is None else self.c_low
        high = self.c_high_start if self.c_high is None else self.c_high
        return Boundaries.at(tokens.log_ratio, math.log(low), math.log(high))

    def properties(self) -> Properties:
        highest = self.c_high_max if self.c_high is None else self.c_high
        return Properties(
            continuous=False,
            upper_bound=math.inf if self.dual_clip is None else max(self.dual_clip, highest),
            limit_negative="zero",
            limit_positive="finite",
        )


@dataclass(frozen=True, kw_only=True)
class BAPO(AdaptiveClip):
    """A hard clip whose bounds are adapted to every batch until positive and negative tokens reach a target ratio.

    `calibrate` starts at (c_low_start, c_high_start). While P/N < target_ratio, it raises c_low in steps up to
    c_low_max, and then c_high up to c_high_max; the last step may be shorter. The sums are over the batch::

        P = Σ_{A>0} min(r, c_high) · A        N = Σ_{A<0} max(r, c_low) · |A|

    The weight is that of a clip with those bounds::

        left         A < 0, r < c_low        w = 0    φ = c_low
        right        A > 0, r > c_high       w = 0    φ = c_high
        dual clip    A < 0, r > dual_clip    w = 0    φ = dual_clip
        else                                 w = r    φ = r

    `target_ratio` is the authors' *ratio* P/N. A share P/(P+N) of 0.5 is a ratio of 1, and the 0.5 in their example
    script is a share of 1/3. Raising c_low can only lower P/N (a clipped negative token counts with c_low · |A|, more
    than r · |A|), so if the start bounds miss the target, the first phase always runs to c_low_max.
    `BAPOAlgorithm1` is the search of the paper.

    Args:
        c_low: None until calibrated, then the lower bound.
        c_high: None until calibrated, then the upper bound.
        target_ratio: wanted ratio of P to N.
        c_low_start: lower bound that the search starts from.
        c_low_max: lower bound that the search ends at.
        c_low_step: step of the search for the lower bound.
        c_high_start: upper bound that the search starts from.
        c_high_max: upper bound that the search ends at.
        c_high_step: step of the search for the upper bound.
        dual_clip: ratio beyond which a token with A < 0 is dropped; the authors run with 3.

    `calibrate` reads the batch it is given, summed over ranks where torch.distributed is initialised, and costs one
    host synchronisation; an objective that carries its bounds returns itself. The weight then depends on how the step
    was split into micro-batches, as in the authors' code. Uncalibrated, the weight is that of the start bounds.

    Source: WooooDyy/BAPO@72870444 recipe/bapo/policy_loss.py:75-165; ranges as in its README. Its
    `seq-mean-token-sum-norm` does not divide by the sequences.
    """

    name = "bapo"
    papers = (PAPER,)
    guards = ("dual_clip",)
    elsewhere = ELSEWHERE

    target_ratio: float = number(1.0, "(0, inf]")

    def _mass(self, tokens: TokenBatch) -> Tensor:
        return tokens.advantage.abs()

    def _search(self, positive: list[float], negative: list[float]) -> tuple[int, int]:
        low = high = 0
        # P/N < target_ratio, without dividing by an N of 0
        while positive[high] < self.target_ratio * negative[low]:
            if low + 1 < len(negative):
                low += 1
            elif high + 1 < len(positive):
                high += 1
            else:
                break
        return low, high


@dataclass(frozen=True, kw_only=True)
class BAPOAlgorithm1(AdaptiveClip):
    """BAPO by Algorithm 1 of the paper: c_high first, then c_low, towards a share of probability-weighted mass.

    While P / (P + N) < rho0, `calibrate` raises c_high up to c_high_max, and then c_low up to c_low_max, with
    q = π_old of the token (the paper weights with the sampler's probability, eq. 8)::

        P = Σ_{A>0} q · min(r, c_high) · A        N = Σ_{A<0} q · max(r, c_low) · |A|

    The preprint prints the absolute value outside the sums, which gives no share. The weight is that of `BAPO`::

        left         A < 0, r < c_low        w = 0    φ = c_low
        right        A > 0, r > c_high       w = 0    φ = c_high
        dual clip    A < 0, r > dual_clip    w = 0    φ = dual_clip
        else                                 w = r    φ = r

    Because of the factor q its target cannot be converted into BAPO's `target_ratio`.

    Args:
        rho0: wanted share P / (P + N); the paper uses 0.5.
        c_low: None until calibrated, as for `BAPO`.
        c_high: None until calibrated, as for `BAPO`.
        c_low_start: lower bound that the search starts from.
        c_low_max: lower bound that the search ends at.
        c_low_step: step of the search for the lower bound.
        c_high_start: upper bound that the search starts from.
        c_high_max: upper bound that the search ends at.
        c_high_step: step of the search for the upper bound.
        dual_clip: ratio beyond which a token with A < 0 is dropped; None as in the paper.

    Source: arXiv 2510.18927, Algorithm 1 and eq. 8. No code for it was released; the authors' code is `BAPO`.
    """

    name = "bapo_algorithm1"
    papers = (PAPER,)
    guards = ("dual_clip",)
    elsewhere = ELSEWHERE

    rho0: float = number(0.5, "(0, 1)")

    def _mass(self, tokens: TokenBatch) -> Tensor:
        return tokens.advantage.abs() * tokens.old_logprob.exp()

    def _search(self, positive: list[float], negative: list[float]) -> tuple[int, int]:
        low = high = 0
        while positive[high] < self.rho0 * (positive[high] + negative[low]):
            if high + 1 < len(positive):
                high += 1
            elif low + 1 < len(negative):
                low += 1
            else:
                break
        return low, high


def _ladder(start: float, end: float, step: float) -> list[float]:
    """start, start + step, ... and always `end`: the authors' next bound is min(c + step, end)."""
    return [start + i * step for i in range(math.ceil((end - start) / step - _SLACK))] + [end]
