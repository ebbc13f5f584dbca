"""GSPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from closed_forms import EPS, Method, by_region, clipped

METHODS = {
    "gspo": Method(
        closed_form=lambda x, q, sign, eps_low, eps_high: clipped(x, 1 - eps_low, 1 + eps_high, sign, None),
        settings=[{"eps_low": 0.2, "eps_high": 0.28}, {"eps_low": 0, "eps_high": 0}],
        extreme=EPS,
    ),
}

test_closed_form = by_region(METHODS)
