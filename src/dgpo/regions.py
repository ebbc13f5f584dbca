"""The five regions of a token: its ratio against the boundaries of an objective, and the sign of its advantage."""

from __future__ import annotations

import math

from torch import Tensor

from dgpo.objectives.objective import Boundaries
from dgpo.tokens import TokenBatch

REGIONS: tuple[str, ...] = ("inside", "left", "right", "reverse_left", "reverse_right")


def usual_boundaries(tokens: TokenBatch) -> Boundaries:
    """Ratios of 0.8 and 1.2, for tokens whose objective is not known."""
    return Boundaries.at(tokens.log_ratio.detach(), math.log(0.8), math.log(1.2))


def regions(tokens: TokenBatch, boundaries: Boundaries) -> dict[str, Tensor]:
    """Five [B, T] bool masks that partition the valid tokens: `regions(tokens, objective.boundaries(tokens))`.

    With x the log ratio that the objective compares, and its boundaries low and high::

        left             A < 0, x < low      pushed down, already far down
        right            A > 0, x > high     pushed up, already far up
        reverse_left     A > 0, x < low      has drifted against its own advantage
        reverse_right    A < 0, x > high     likewise
        inside           everything else; A = 0 included, on which no boundary acts

    Args:
        tokens: the batch.
        boundaries: of the objective, calibrated on this batch if it reads it. `Boundaries.at(tokens.log_ratio,
            math.log(0.8), math.log(1.2))` are those of any range.
    """
    x, low, high = boundaries
    negative, positive = tokens.advantage < 0, tokens.advantage > 0
    # strict: at a boundary itself a clip does not act yet
    below, above = x < low, x > high
    found = {
        "left": negative & below,
        "right": positive & above,
        "reverse_left": positive & below,
        "reverse_right": negative & above,
    }
    found["inside"] = ~(found["left"] | found["right"] | found["reverse_left"] | found["reverse_right"])
    return {name: found[name] & tokens.mask for name in REGIONS}
