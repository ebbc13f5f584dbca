"""VESPO: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import mpmath
from closed_forms import NEAR, Method, by_region
from mpmath import mpf


def vespo_form(x: Any, q: Any, sign: int, k_pos: Any, lambda_pos: Any, k_neg: Any, lambda_neg: Any) -> Any:
    x = min(max(x, mpmath.log(mpf("1e-8"))), 20)
    k, rate = (k_pos, lambda_pos) if sign >= 0 else (k_neg, lambda_neg)
    w = mpmath.exp(k * x - rate * (mpmath.exp(x) - 1))
    return w, w, w


METHODS = {
    "vespo": Method(
        closed_form=vespo_form,
        settings=[{"k_pos": 1.5, "lambda_neg": 2.5}, {"k_pos": 0, "k_neg": 0}],
        extreme=[{"k_pos": 0, "k_neg": 0}, {"k_pos": NEAR, "lambda_pos": NEAR, "lambda_neg": 70, "k_neg": 60}],
    ),
}

test_closed_form = by_region(METHODS)
