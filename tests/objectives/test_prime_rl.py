"""prime-rl's losses: the closed forms, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from closed_forms import INF, Method, by_region

from dgpo import TokenBatch
from dgpo.objectives import DPPOTV, PrimeRL, PrimeRLIPO


def prime_rl_form(x: Any, q: Any, sign: int, delta_low: Any, delta_high: Any, ratio_cap: Any, kl_tau: Any) -> Any:
    r, q = mpmath.exp(x), mpmath.exp(q)
    change = q * (r - 1)
    lo, hi = 1 - delta_low / q, 1 + delta_high / q
    beyond = (sign < 0 and change < -delta_low) or (sign > 0 and change > delta_high)
    at = (lo if sign < 0 else hi) if beyond else r
    phi = at if at <= ratio_cap else ratio_cap * (1 + mpmath.log(at / ratio_cap))
    return 0 if beyond else min(r, ratio_cap), phi, max(at, phi)


def prime_rl_ipo_form(x: Any, q: Any, sign: int, ipo_threshold: Any, kl_tau: Any) -> Any:
    r, q = mpmath.exp(x), mpmath.exp(q)
    if abs(q * (r - 1)) <= ipo_threshold:
        return r, r, r
    bound = 1 + (ipo_threshold if r > 1 else -ipo_threshold) / q
    return 0, bound, 1 + ipo_threshold / q


METHODS = {
    "prime_rl": Method(
        closed_form=prime_rl_form,
        settings=[{"kl_tau": 0, "ratio_cap": 10}, {"delta_low": 0.05, "delta_high": 0.4, "kl_tau": 0.1}],
        extreme=[{"delta_low": INF, "delta_high": INF}, {"delta_low": 1e-3}],
    ),
    "prime_rl_ipo": Method(
        closed_form=prime_rl_ipo_form,
        settings=[{"ipo_threshold": 0.3, "kl_tau": 0}, {"ipo_threshold": INF}],
        extreme=[{"ipo_threshold": 1e-3}, {"ipo_threshold": INF}],
    ),
}

test_closed_form = by_region(METHODS)


def tokens(x: list[float], advantage: float, old: float) -> TokenBatch:
    log_ratio = torch.tensor([x], dtype=torch.float64)
    base = torch.full_like(log_ratio, old)
    return TokenBatch(base + log_ratio, base, torch.tensor([advantage]), torch.ones_like(base, dtype=torch.bool))


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_without_a_penalty_the_default_is_dppo_without_a_cap(advantage: float) -> None:
    for old in (-0.1, -1.0, -4.0):
        grid = tokens([x for x in (-3.0, -1.0, -0.2, 0.05, 0.4, 0.9, 3.5) if x < -old], advantage, old)
        ours, theirs = PrimeRL(kl_tau=0), DPPOTV(ratio_cap=INF)
        torch.testing.assert_close(ours.weight(grid), theirs.weight(grid), rtol=0, atol=0)
        assert not ours.penalises
        assert not theirs.penalises


def test_ipo_acts_on_both_sides_whatever_the_sign_of_the_advantage() -> None:
    """q = 0.5: beyond a change of 0.1 a token is dropped, up or down."""
    ratio = [0.7, 0.9, 1.0, 1.1, 1.3]
    x = torch.tensor(ratio, dtype=torch.float64).log().tolist()
    for advantage in (-1.0, 1.0):
        weight = PrimeRLIPO().weight(tokens(x, advantage, -0.6931471805599453)).squeeze(0).tolist()
        assert weight == pytest.approx([0.0, 0.9, 1.0, 1.1, 0.0])
