"""DRPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

import math
from typing import Any

import mpmath
from closed_forms import INF, Method, by_region


def drpo_form(x: Any, q: Any, sign: int, delta: Any) -> Any:
    r, q = mpmath.exp(x), mpmath.exp(q)
    pull = sign * q * (r - 1) ** 2 / (2 * delta)
    return r * (1 - sign * q * (r - 1) / delta), r - pull, r + abs(pull) + abs(r * q * (r - 1) / delta)


METHODS = {
    "drpo": Method(
        closed_form=drpo_form,
        settings=[{"delta": 0.3}, {"delta": math.inf}],
        extreme=[{"delta": 1e-3}, {"delta": 1e-20}, {"delta": INF}],
    ),
}

test_closed_form = by_region(METHODS)
