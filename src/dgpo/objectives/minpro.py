"""MinPRO: the ratio of a token times the smallest ratio before it (arXiv 2601.22718)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dgpo.fields import number
from dgpo.objectives.frameworks import FRAMEWORKS, Conformance
from dgpo.objectives.objective import Boundaries, Objective, Properties, Read
from dgpo.objectives.paper import Paper
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class MinPRO(Objective):
    """The ratio of the prefix, approximated by its smallest token ratio, with CISPO's two-sided cap.

    With r_t the importance ratio of token t, lo = 1 - eps_low and hi = 1 + eps_high::

        R_t = r_t · min over the tokens i < t of r_i        R = r for the first token

        R < lo     w = lo
        R > hi     w = hi
        else       w = R

    φ = w. The exact ratio of a prefix is the product of all its ratios, whose variance grows with its length. Only the
    tokens of `mask` are in a prefix.

    Args:
        eps_low: lo is the least weight; at 1 there is none.
        eps_high: hi is the largest weight.

    Source: arXiv 2601.22718, section on the MinPRO objective, as quoted in public notes on it; no code of its authors
    could be found, and the values that they use for the two bounds could not be verified: the defaults are those of
    `cispo_two_sided` here.
    """

    name = "minpro"
    papers = (
        Paper(
            arxiv_id="2601.22718",
            title="A Step Back: Prefix Importance Ratio Stabilizes Policy Optimization",
            authors=("Shiye Lei", "Zhihao Cheng", "Dacheng Tao"),
            year=2026,
        ),
    )
    elsewhere: ClassVar = dict.fromkeys(
        FRAMEWORKS, Conformance(note="without its prefix it is `cispo_two_sided`, where that exists")
    )

    level: ClassVar[Literal["token", "sequence"]] = "sequence"

    eps_low: float = number(0.2, "[0, 1]")
    eps_high: float = number(0.2, "[0, inf)")

    @property
    def reads(self) -> frozenset[Read]:
        return frozenset({"ratio", "response"})

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        x = tokens.log_ratio
        # padding and the tokens to come are no part of a prefix
        smallest = torch.where(tokens.mask, x, math.inf)
        # a first column, which has no prefix: what follows is shifted by one
        smallest = torch.nn.functional.pad(smallest, (1, 0), value=math.inf).cummin(-1).values[..., :-1]
        x = x + torch.where(smallest.isinf(), 0.0, smallest)
        low = -math.inf if self.eps_low == 1 else math.log1p(-self.eps_low)
        return Boundaries.at(x, low, math.log1p(self.eps_high))

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, low, high = self.boundaries(tokens)
        return torch.minimum(torch.maximum(x, low), high).exp()

    def properties(self) -> Properties:
        return Properties(
            continuous=True,
            upper_bound=1 + self.eps_high,
            limit_negative=None,
            limit_positive=None,
        )
