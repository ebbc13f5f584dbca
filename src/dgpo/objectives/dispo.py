"""DISPO: CISPO's clipped weight with bounds of its own for either sign of A (arXiv 2602.00983)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Limit, Objective, Properties
from dgpo.objectives.paper import Paper, names
from dgpo.tokens import TokenBatch

PAPER = Paper(
    arxiv_id="2602.00983",
    title=(
        "DISPO: Enhancing Training Efficiency and Stability in Reinforcement Learning for Large Language Model "
        "Mathematical Reasoning"
    ),
    authors=names(
        "Batuhan K. Karaman, Aditya Rawal, Suhaila Shakiah, Mohammad Ghavamzadeh, Mingyi Hong, Arijit Biswas, "
        "Ruida Zhou"
    ),
    year=2026,
    venue="AISTATS 2026",
)


@dataclass(frozen=True, kw_only=True)
class DISPO(Objective):
    """w = clip(r, lo, hi) with four bounds: two for A > 0, two for A < 0.

    With r the importance ratio, lo = 1 - eps_low and hi = 1 + eps_high for the sign of A, bound the nearer of the two::

        lo <= r <= hi    w = r        φ = r
        else             w = bound    φ = bound · (1 + log(r / bound))

    With the same bounds for both signs it is `CISPOTwoSided`, and without lower bounds `CISPO`.

    Args:
        eps_low_pos: for A > 0 the weight is at least 1 - eps_low_pos. From 1 on there is no lower bound.
        eps_high_pos: for A > 0 the weight is at most 1 + eps_high_pos; a larger value gives more entropy.
        eps_low_neg: for A < 0 the weight is at least 1 - eps_low_neg; according to the paper, responses shrink below 1.
        eps_high_neg: for A < 0 the weight is at most 1 + eps_high_neg; if too small, repetitions are not punished.

    Source: arXiv 2602.00983. No code was released. The rule is that of the abstract. The values of the four bounds
    are those that others quote from the paper; we could not check them there.
    """

    name = "dispo"
    papers = (PAPER,)
    elsewhere = dict.fromkeys(FRAMEWORKS, Conformance(note="`cispo` there has the same bounds for both signs of A"))

    eps_low_pos: float = number(0.2, "[0, inf)")
    eps_high_pos: float = number(10.0, "[0, inf)")
    eps_low_neg: float = number(1.0, "[0, inf)")
    eps_high_neg: float = number(100.0, "[0, inf)")

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        positive, negative = (
            Boundaries.at(tokens.log_ratio, _log_low(low), math.log1p(high))
            for low, high in ((self.eps_low_pos, self.eps_high_pos), (self.eps_low_neg, self.eps_high_neg))
        )
        rewarded = tokens.advantage > 0
        return Boundaries(
            tokens.log_ratio,
            torch.where(rewarded, positive.low, negative.low),
            torch.where(rewarded, positive.high, negative.high),
        )

    def _inside(self, tokens: TokenBatch) -> Tensor:
        """The log ratio nearest to the token's own inside its bounds."""
        _, low, high = self.boundaries(tokens)
        return torch.minimum(torch.maximum(tokens.log_ratio, low), high)

    def weight(self, tokens: TokenBatch) -> Tensor:
        return self._inside(tokens).exp()

    def potential(self, tokens: TokenBatch) -> Tensor:
        inside = self._inside(tokens)
        # w is constant beyond a bound, so φ continues as a straight line in x
        return inside.exp() * (1 + (tokens.log_ratio - inside))

    def properties(self) -> Properties:
        negative, positive = (_limit(low) for low in (self.eps_low_neg, self.eps_low_pos))
        return Properties(
            continuous=True,
            upper_bound=1 + max(self.eps_high_pos, self.eps_high_neg),
            limit_negative=negative,
            limit_positive=positive,
        )


def _log_low(eps: float) -> float:
    # a lower bound of 0 or less is none, and has no logarithm
    return math.log1p(-eps) if eps < 1 else -math.inf


def _limit(eps: float) -> Limit:
    return "infinite" if eps < 1 else "finite"
