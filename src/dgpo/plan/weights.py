"""An objective as a small table: its weight at a few ratios, region by region."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dgpo.objectives import Objective
from dgpo.regions import regions
from dgpo.tokens import TokenBatch

RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0)
OLD_PROBABILITY = 0.1
"""π_old of the tokens in the table, for objectives that read it."""


@dataclass(frozen=True, kw_only=True)
class WeightRow:
    """The weight w of a token at one ratio r, for either sign of A, and the regions it is in."""

    ratio: float
    negative: float
    negative_region: str
    positive: float
    positive_region: str


def weight_table(objective: Objective) -> tuple[WeightRow, ...]:
    """w by ratio and sign of A, for tokens with π_old = `OLD_PROBABILITY` and entropy 1.

    A method of sequence level sees responses of one token.
    """
    old = torch.full((len(RATIOS), 1), OLD_PROBABILITY, dtype=torch.float64).log()
    logprob = old + torch.tensor(RATIOS, dtype=torch.float64).log().unsqueeze(1)
    found = []
    for sign in (-1.0, 1.0):
        one = torch.ones_like(logprob)
        tokens = TokenBatch(logprob, old, sign * one[:, 0], one.bool(), entropy=one)
        names = regions(tokens, objective.boundaries(tokens))
        region = [next(name for name, mask in names.items() if mask[i, 0]) for i in range(len(RATIOS))]
        found.append((objective.weight(tokens)[:, 0].tolist(), region))
    (negative, left), (positive, right) = found
    return tuple(
        WeightRow(
            ratio=ratio,
            negative=negative[i],
            negative_region=left[i],
            positive=positive[i],
            positive_region=right[i],
        )
        for i, ratio in enumerate(RATIOS)
    )
