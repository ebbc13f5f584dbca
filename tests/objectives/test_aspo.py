"""ASPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

import math
from typing import Any

import mpmath
from closed_forms import EPS, INF, NEAR, Method, by_region, capped
from mpmath import mpf


def aspo_form(
    x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any, dual_clip_pos: Any, dual_clip_neg: Any, **_: Any
) -> Any:
    if sign > 0:
        w, flipped, size = capped(-x, dual_clip_pos)
        if mpmath.exp(x) > 1 + eps_high:
            w, flipped = mpf(0), 1 / (1 + eps_high)
        return w, 2 - flipped, 2 + size
    w, phi, size = capped(x, dual_clip_neg)
    return (w, phi, size) if mpmath.exp(x) >= 1 - eps_low else (mpf(0), 1 - eps_low, 1 - eps_low)


METHODS = {
    "aspo": Method(
        closed_form=aspo_form,
        settings=[
            {"entropy_quantile": 0.8},
            {"dual_clip_pos": math.inf, "dual_clip_neg": math.inf},
            {"dual_clip_pos": 1.5, "dual_clip_neg": 2, "eps_low": 0.1, "eps_high": 0.28},
        ],
        extreme=[
            *EPS,
            {"dual_clip_pos": 1 + NEAR, "dual_clip_neg": 1 + NEAR},
            {"dual_clip_pos": INF, "dual_clip_neg": INF},
        ],
    ),
}

test_closed_form = by_region(METHODS)
