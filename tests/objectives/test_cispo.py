"""CISPO, as published and two-sided: the closed form, and the settings that the common suites test."""

from __future__ import annotations

import math

from closed_forms import EPS, INF, NEAR, Method, by_region, capped

METHODS = {
    "cispo": Method(
        closed_form=lambda x, q, sign, cap: capped(x, cap),
        settings=[{"cap": 1}, {"cap": 1.2}, {"cap": math.inf}],
        extreme=[{"cap": 1}, {"cap": 1 + NEAR}, {"cap": INF}],
    ),
    "cispo_two_sided": Method(
        closed_form=lambda x, q, sign, eps_low, eps_high: capped(x, 1 + eps_high, max(1 - eps_low, 0)),
        settings=[{"eps_high": 4, "eps_low": 1}, {"eps_low": 0, "eps_high": 0}],
        extreme=[*EPS, {"eps_low": 1}],
    ),
}

test_closed_form = by_region(METHODS)
