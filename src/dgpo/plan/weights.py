"""An objective as a small table: its weight at a few ratios, region by region."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dgpo.objectives import Objective
from dgpo.objectives.curves import weight_curve
from dgpo.regions import regions

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
    """w by ratio and sign of A, for tokens with π_old = `OLD_PROBABILITY`.

    A method of sequence level sees responses of one token.
    """
    log_ratio, found = [math.log(ratio) for ratio in RATIOS], []
    for sign in (-1.0, 1.0):
        curve = weight_curve(objective, log_ratio, advantage=sign, old_logprob=math.log(OLD_PROBABILITY))
        names = regions(curve.tokens, curve.boundaries)
        # the regions partition the tokens, so exactly one holds
        region = [next(name for name, mask in names.items() if mask[i, 0]) for i in range(len(RATIOS))]
        found.append((curve.weight.tolist(), region))
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
