"""GMPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

import math
from typing import Any

import mpmath
from closed_forms import INF, Method, by_region
from mpmath import mpf


def gmpo_form(x: Any, q: Any, sign: int, log_clip_low: Any, log_clip_high: Any) -> Any:
    near = max(x, -log_clip_low) if sign < 0 else min(x, log_clip_high) if sign > 0 else x
    phi = mpmath.exp(near)
    return phi if near == x else mpf(0), phi, phi


METHODS = {
    "gmpo": Method(
        closed_form=gmpo_form,
        settings=[
            {"log_clip_low": 0, "log_clip_high": 0.1},
            {"log_clip_low": 1, "log_clip_high": math.inf},
            {"log_clip_low": math.inf, "log_clip_high": math.inf},
        ],
        extreme=[{"log_clip_low": 0, "log_clip_high": 0}, {"log_clip_low": INF, "log_clip_high": INF}],
    ),
}

test_closed_form = by_region(METHODS)
