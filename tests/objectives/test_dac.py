"""DAC, the clip of DCPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import mpmath
from closed_forms import DUAL, EPS, INF, Method, by_region, clipped


def dac_form(x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any, dual_clip: Any) -> Any:
    q = mpmath.exp(q)
    lo = (1 + mpmath.sqrt(max(1 - 4 * eps_low / q, 0))) / 2
    hi = min((1 + mpmath.sqrt(1 + 4 * eps_high / q)) / 2, max(dual_clip or 0, 10))
    return clipped(x, lo, hi, sign, dual_clip)


METHODS = {
    "dac": Method(
        closed_form=dac_form,
        settings=[
            {"dual_clip": 10},
            {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3},
            {"eps_low": 0, "eps_high": 0},
            {"dual_clip": INF},
        ],
        extreme=EPS + DUAL,
    ),
}

test_closed_form = by_region(METHODS)
