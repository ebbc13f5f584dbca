"""The five regions of a token: its ratio against the clip range, and the sign of its advantage."""

from __future__ import annotations

import math

from torch import Tensor

from dgpo.fields import check_value
from dgpo.tokens import TokenBatch

REGIONS: tuple[str, ...] = ("inside", "left", "right", "reverse_left", "reverse_right")


def regions(tokens: TokenBatch, eps_low: float = 0.2, eps_high: float = 0.2) -> dict[str, Tensor]:
    """Five [B, T] bool masks that partition the valid tokens.

    With r the token's importance ratio::

        left             A < 0, r < 1 - eps_low      pushed down, already far down
        right            A > 0, r > 1 + eps_high     pushed up, already far up
        reverse_left     A > 0, r < 1 - eps_low      has drifted against its own advantage
        reverse_right    A < 0, r > 1 + eps_high     likewise
        inside           everything else; A = 0 included, on which no boundary acts

    Raises:
        ValueError: an offset that is NaN or below 0.
    """
    check_value("eps_low", eps_low, "[0, inf]")
    check_value("eps_high", eps_high, "[0, inf]")
    x, negative, positive = tokens.log_ratio.detach(), tokens.advantage < 0, tokens.advantage > 0
    log_lo = math.log1p(-eps_low) if eps_low < 1 else -math.inf  # a method may leave the left side open
    low, high = x < log_lo, x > math.log1p(eps_high)
    found = {
        "left": negative & low,
        "right": positive & high,
        "reverse_left": positive & low,
        "reverse_right": negative & high,
    }
    outside = found["left"] | found["right"] | found["reverse_left"] | found["reverse_right"]
    found = {"inside": ~outside, **found}
    return {name: found[name] & tokens.mask for name in REGIONS}
