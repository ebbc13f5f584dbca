"""GPPO and CE-GPPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from closed_forms import DUAL, EPS, NEAR, Method, by_region, clipped

METHODS = {
    "gppo": Method(
        closed_form=lambda x, q, sign, eps_low, eps_high, dual_clip: clipped(
            x, 1 - eps_low, 1 + eps_high, sign, dual_clip, left=1, right=1
        ),
        settings=[{"eps_high": 0.28, "dual_clip": 10}, {"eps_low": 0, "eps_high": 0}],
        extreme=EPS + DUAL,
    ),
    "ce_gppo": Method(
        closed_form=lambda x, q, sign, beta1, beta2, eps_low, eps_high, dual_clip: clipped(
            x, 1 - eps_low, 1 + eps_high, sign, dual_clip, left=beta1, right=beta2
        ),
        settings=[
            {"beta1": 1, "beta2": 1},
            {"beta1": 0, "beta2": 0},
            {"beta1": 0.5, "beta2": 2, "dual_clip": 1.5},
            {"beta1": 3, "eps_low": 0},
        ],
        extreme=[*EPS, *DUAL, {"beta1": 0, "beta2": 0}, {"beta1": NEAR, "beta2": NEAR}],
    ),
}

test_closed_form = by_region(METHODS)
