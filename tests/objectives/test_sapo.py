"""SAPO on both sides and on one: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import mpmath
from closed_forms import NEAR, Method, by_region


def sapo_form(x: Any, q: Any, sign: int, tau_pos: Any, tau_neg: Any) -> Any:
    r, tau = mpmath.exp(x), tau_pos if sign > 0 else tau_neg
    z = tau * (r - 1) / 2
    rest = 2 / tau * mpmath.tanh(z)
    return r * mpmath.sech(z) ** 2, 1 + rest, 1 + abs(rest)


def sapo_unilateral_form(x: Any, q: Any, sign: int, **taus: Any) -> Any:
    return sapo_form(x, q, sign, **taus) if sign * x > 0 else (mpmath.exp(x),) * 3


METHODS = {
    "sapo": Method(
        closed_form=sapo_form,
        settings=[{"tau_pos": 5, "tau_neg": 0.1}],
        extreme=[*({"tau_pos": tau, "tau_neg": tau} for tau in (1e-50, 1e-30, NEAR, 1e3))],
    ),
    "sapo_unilateral": Method(
        closed_form=sapo_unilateral_form,
        settings=[{"tau_pos": 5, "tau_neg": 0.1}],
        extreme=[*({"tau_pos": tau, "tau_neg": tau} for tau in (1e-50, 1e-30, NEAR, 1e3))],
    ),
}

test_closed_form = by_region(METHODS)
