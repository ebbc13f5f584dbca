"""DPPO with either divergence: the closed form, and the settings that the common suites test."""

from __future__ import annotations

import math
from typing import Any

import mpmath
from closed_forms import NEAR, Method, by_region, capped
from mpmath import mpf


def dppo_tv_form(x: Any, q: Any, sign: int, delta_low: Any, delta_high: Any, ratio_cap: Any) -> Any:
    change = mpmath.exp(q) * (mpmath.exp(x) - 1)
    if sign < 0 and -change > delta_low:
        bound = 1 - delta_low / mpmath.exp(q)
    elif sign > 0 and change > delta_high:
        bound = 1 + delta_high / mpmath.exp(q)
    else:
        return capped(x, ratio_cap)
    _, phi, size = capped(mpmath.log(bound), ratio_cap)
    return mpf(0), phi, size


def dppo_kl_form(x: Any, q: Any, sign: int, delta_low: Any, delta_high: Any, ratio_cap: Any) -> Any:
    new, old = mpmath.exp(q + x), mpmath.exp(q)
    divergence = -old * x + (1 - old) * mpmath.log((1 - old) / (1 - new))
    dropped = sign * x > 0 and divergence > (delta_low if sign < 0 else delta_high)
    w = mpf(0) if dropped else min(mpmath.exp(x), ratio_cap)
    return w, w, w


DELTAS: list[dict[str, Any]] = [
    {"delta_low": NEAR, "delta_high": NEAR},
    {"ratio_cap": 1},
    {"delta_low": 1 - NEAR},
    {"delta_low": 1e-50, "delta_high": 1e-50},
]
METHODS = {
    "dppo_tv": Method(
        closed_form=dppo_tv_form,
        settings=[{"delta_low": 1, "delta_high": 1}, {"delta_low": 0.1, "ratio_cap": math.inf}, {"ratio_cap": 1}],
        extreme=DELTAS,
    ),
    "dppo_kl": Method(
        closed_form=dppo_kl_form,
        settings=[
            {"delta_low": math.inf, "delta_high": math.inf},
            {"delta_low": 0.01, "delta_high": 0.2, "ratio_cap": 1e4},
            {"ratio_cap": 1},
        ],
        extreme=DELTAS,
    ),
}

test_closed_form = by_region(METHODS)
