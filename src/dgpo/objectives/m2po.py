"""M2PO: a clip as narrow as the second moment of the log ratios requires (arXiv 2510.01161)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.hard_clip import HardClip
from dgpo.objectives.objective import Boundaries, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.objectives.ranks import gathered
from dgpo.tokens import TokenBatch

MARGIN = 1e-12
"""Subtracted from the square of the bound, as in the authors' code: the token that it is taken from is clipped too."""


@dataclass(frozen=True, kw_only=True)
class M2PO(HardClip):
    """A hard clip that acts only if the mean squared log ratio of the tokens concerned exceeds a budget.

    With x the log ratio, `calibrate` looks at the tokens that have moved along their advantage, A > 0 and x > 0 or
    A < 0 and x < 0. If the mean of their x² is at most `budget`, tau is infinite; otherwise it is the largest |x| of
    them for which the mean of min(x², tau²) is below the budget. The bounds are never narrower than those of eps_low
    and eps_high::

        low = min(-tau, log(1 - eps_low))        high = max(tau, log(1 + eps_high))

        left     A < 0, x < low     w = 0         φ = exp(low)
        right    A > 0, x > high    w = 0         φ = exp(high)
        else                        w = exp(x)    φ = exp(x)

    Args:
        budget: of the mean squared log ratio, in nats²; the authors run with 0.04.
        eps_low: the left boundary is at most 1 - eps_low.
        eps_high: the right boundary is at least 1 + eps_high.
        tau: None until calibrated, then the bound in nats; inf for no clip.

    `calibrate` reads the batch that it is given, on all ranks if torch.distributed is initialised (the authors' code
    reads the micro-batch of the rank), and costs one host synchronisation. The weight then depends on how the step was
    split into micro-batches. Uncalibrated, the bounds are those of eps_low and eps_high.

    Source: Infini-AI-Lab/M2PO@af54a3e8 verl/trainer/ppo/core_algos.py:683-868. Deviations: without a clip their upper
    bound is a ratio of 100,000; their sign of A is that of the first token of the response; their
    `seq-mean-token-sum-norm` does not divide by the sequences. AReaL's `m2_threshold` is another method: it masks
    tokens, of either sign, by the squared difference between the sampler's and the proximal log-prob.
    """

    name = "m2po"
    papers = (
        Paper(
            arxiv_id="2510.01161",
            title="Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?",
            authors=("Haizhong Zheng", "Jiawei Zhao", "Beidi Chen"),
            year=2025,
            code="https://github.com/Infini-AI-Lab/M2PO",
        ),
    )
    elsewhere: ClassVar = dict.fromkeys(
        FRAMEWORKS,
        Conformance(note="no search for the bound; once calibrated, its weight is that of `grpo` with the same bounds"),
    )

    budget: float = number(0.04, "(0, inf]")
    eps_low: float = number(0.3, "[0, 1)")
    eps_high: float = number(0.5, "[0, inf)")
    tau: float | None = number(None, "[0, inf]")

    @property
    def reads(self) -> frozenset[Read]:
        found: set[Read] = {"ratio", "advantage_sign"}
        if self.tau is None:
            found.add("batch")
        return frozenset(found)

    def calibrate(self, tokens: TokenBatch) -> Self:
        if self.tau is not None:
            return self
        x = tokens.log_ratio.detach()
        moved = tokens.mask & (tokens.advantage * x > 0)
        # double: a sum over the whole batch, of squares that differ by orders of magnitude
        squares = gathered(x[moved].double().square()).sort().values
        return replace(self, tau=self._bound(squares.cpu()))

    def _bound(self, squares: torch.Tensor) -> float:
        """tau, from the squared log ratios in ascending order."""
        count = len(squares)
        if count == 0 or squares.mean() <= self.budget:
            return math.inf
        # capped at the k-th, the squares sum to the first k and as many times the k-th as follow
        after = torch.arange(count - 1, -1, -1, dtype=squares.dtype)
        beyond = squares.cumsum(0) + after * squares >= self.budget * count
        first = int(beyond.int().argmax())
        return math.sqrt(max(float(squares[first - 1]) - MARGIN, 0.0)) if first else 0.0

    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        tau = 0.0 if self.tau is None else self.tau
        low, high = min(-tau, math.log1p(-self.eps_low)), max(tau, math.log1p(self.eps_high))
        return Boundaries.at(tokens.log_ratio, low, high)

    def properties(self) -> Properties:
        unclipped = self.tau == math.inf
        return Properties(
            continuous=unclipped,
            upper_bound=math.inf,
            limit_negative="finite" if unclipped else "zero",
            limit_positive="finite",
        )
