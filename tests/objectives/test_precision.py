"""w and φ of every method against its docstring's formula in 40 digits, near the values where a formula degenerates.

What a float32 or float64 may be off by is what its inputs are: a few units in the last place of the log ratio, of
log π_old, of every field and of each term of φ. Whatever an expression cancels beyond that fails.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

mpmath = pytest.importorskip("mpmath")  # comes with torch
from mpmath import mp, mpf  # noqa: E402

from dgpo import TokenBatch, objectives  # noqa: E402
from dgpo.kl import k1, k2, k3, k3_ratio  # noqa: E402
from dgpo.objectives import OBJECTIVES  # noqa: E402

INF = math.inf
Formula = Callable[..., tuple[Any, Any, Any]]
"""(log r, log q, sign of A, **fields) -> w, φ, and the sum of the absolute terms of φ."""


def exact(value: Any) -> Any:
    return value if value is None else mpf(value)


def clipped(x: Any, lo: Any, hi: Any, sign: int, dual: Any, left: Any = 0, right: Any = 0) -> tuple[Any, Any, Any]:
    """r inside; beyond a bound b the weight is scale · b and φ = b · (1 + scale · log(r/b))."""
    r = mpmath.exp(x)
    for beyond, bound, scale in (
        (sign < 0 and r < lo, lo, left),
        (sign > 0 and r > hi, hi, right),
        (sign < 0 and dual is not None and r > dual, dual, 0),
    ):
        if beyond:
            log = x - mpmath.log(bound)
            return scale * bound, bound * (1 + scale * log), bound * (1 + abs(scale * log))
    return r, r, r


def capped(x: Any, cap: Any, floor: Any = 0) -> tuple[Any, Any, Any]:
    r = mpmath.exp(x)
    if floor <= r <= cap:
        return r, r, r
    bound = cap if r > cap else floor
    log = x - mpmath.log(bound)
    return bound, bound * (1 + log), bound * (1 + abs(log))


def dgpo(
    x: Any, q: Any, sign: int, n: Any, m: Any, eps_low: Any, eps_high: Any, reverse_cap: Any, right_cap: Any
) -> Any:
    r, lo, hi = mpmath.exp(x), 1 - eps_low, 1 + eps_high
    root = mpf(1) if m == INF else 1 - 1 / m
    if sign < 0 and r < lo:
        if n == INF:
            return mpf(0), lo, lo
        w, phi = lo * (r / lo) ** (n + 1), lo * (n + (r / lo) ** (n + 1)) / (n + 1)
        return w, phi, phi
    if sign > 0 and r > hi:
        v = r / hi
        w, phi = hi * v**root, hi * (1 + (mpmath.log(v) if root == 0 else (v**root - 1) / root))
        if right_cap is not None and w > right_cap:
            reached = mpmath.log(hi) + mpmath.log(right_cap / hi) / root
            at = hi * (1 + (right_cap / hi - 1) / root)
            return right_cap, at + right_cap * (x - reached), at + right_cap * (x + reached)
        return w, phi, phi
    return capped(x, reverse_cap) if sign < 0 and reverse_cap is not None else (r, r, r)


def maspo(x: Any, q: Any, sign: int, sigma_base: Any, alpha: Any, sigma_high: Any, **fields: Any) -> Any:
    r = mpmath.exp(x)
    width = min(max(sigma_base * mpmath.exp(-alpha * q), sigma_base), sigma_high)
    risk = 1 + fields["beta_pos"] if sign > 0 else 1 / (1 + fields["beta_neg"])
    width *= min(max(risk, fields["adv_low"]), fields["adv_high"])
    w = r * mpmath.exp(-((r - 1) ** 2) / (2 * width**2)) if sign * x > 0 else r
    return w, w, w


def sapo(x: Any, q: Any, sign: int, tau_pos: Any, tau_neg: Any) -> Any:
    r, tau = mpmath.exp(x), tau_pos if sign > 0 else tau_neg
    z = tau * (r - 1) / 2
    rest = 2 / tau * mpmath.tanh(z)
    return r * mpmath.sech(z) ** 2, 1 + rest, 1 + abs(rest)


def sapo_unilateral(x: Any, q: Any, sign: int, **taus: Any) -> Any:
    return sapo(x, q, sign, **taus) if sign * x > 0 else (mpmath.exp(x),) * 3


def aspo(
    x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any, dual_clip_pos: Any, dual_clip_neg: Any, **_: Any
) -> Any:
    if sign > 0:
        w, flipped, size = capped(-x, dual_clip_pos)
        if mpmath.exp(x) > 1 + eps_high:
            w, flipped = mpf(0), 1 / (1 + eps_high)
        return w, 2 - flipped, 2 + size
    w, phi, size = capped(x, dual_clip_neg)
    return (w, phi, size) if mpmath.exp(x) >= 1 - eps_low else (mpf(0), 1 - eps_low, 1 - eps_low)


def dac(x: Any, q: Any, sign: int, eps_low: Any, eps_high: Any, dual_clip: Any) -> Any:
    q = mpmath.exp(q)
    lo = (1 + mpmath.sqrt(max(1 - 4 * eps_low / q, 0))) / 2
    hi = min((1 + mpmath.sqrt(1 + 4 * eps_high / q)) / 2, max(dual_clip or 0, 10))
    return clipped(x, lo, hi, sign, dual_clip)


def bapo(x: Any, q: Any, sign: int, c_low: Any, c_high: Any, dual_clip: Any, **_: Any) -> Any:
    return clipped(x, c_low, c_high, sign, dual_clip)


def gmpo(x: Any, q: Any, sign: int, log_clip_low: Any, log_clip_high: Any) -> Any:
    near = max(x, -log_clip_low) if sign < 0 else min(x, log_clip_high) if sign > 0 else x
    phi = mpmath.exp(near)
    return phi if near == x else mpf(0), phi, phi


def vespo(x: Any, q: Any, sign: int, k_pos: Any, lambda_pos: Any, k_neg: Any, lambda_neg: Any) -> Any:
    x = min(max(x, mpmath.log(mpf("1e-8"))), 20)
    k, rate = (k_pos, lambda_pos) if sign >= 0 else (k_neg, lambda_neg)
    w = mpmath.exp(k * x - rate * (mpmath.exp(x) - 1))
    return w, w, w


def dppo_tv(x: Any, q: Any, sign: int, delta_low: Any, delta_high: Any, ratio_cap: Any) -> Any:
    change = mpmath.exp(q) * (mpmath.exp(x) - 1)
    if sign < 0 and -change > delta_low:
        bound = 1 - delta_low / mpmath.exp(q)
    elif sign > 0 and change > delta_high:
        bound = 1 + delta_high / mpmath.exp(q)
    else:
        return capped(x, ratio_cap)
    _, phi, size = capped(mpmath.log(bound), ratio_cap)
    return mpf(0), phi, size


def dppo_kl(x: Any, q: Any, sign: int, delta_low: Any, delta_high: Any, ratio_cap: Any) -> Any:
    new, old = mpmath.exp(q + x), mpmath.exp(q)
    divergence = -old * x + (1 - old) * mpmath.log((1 - old) / (1 - new))
    dropped = sign * x > 0 and divergence > (delta_low if sign < 0 else delta_high)
    w = mpf(0) if dropped else min(mpmath.exp(x), ratio_cap)
    return w, w, w


def drpo(x: Any, q: Any, sign: int, delta: Any) -> Any:
    r, q = mpmath.exp(x), mpmath.exp(q)
    pull = sign * q * (r - 1) ** 2 / (2 * delta)
    return r * (1 - sign * q * (r - 1) / delta), r - pull, r + abs(pull) + abs(r * q * (r - 1) / delta)


FORMULAS: dict[str, Formula] = {
    "dgpo": dgpo,
    "maspo": maspo,
    "grpo": lambda x, q, sign, eps_low, eps_high, dual_clip: clipped(x, 1 - eps_low, 1 + eps_high, sign, dual_clip),
    "is": lambda x, q, sign: (mpmath.exp(x),) * 3,
    "cispo": lambda x, q, sign, cap: capped(x, cap),
    "cispo_two_sided": lambda x, q, sign, eps_low, eps_high: capped(x, 1 + eps_high, max(1 - eps_low, 0)),
    "gppo": lambda x, q, sign, eps_low, eps_high, dual_clip: clipped(
        x, 1 - eps_low, 1 + eps_high, sign, dual_clip, left=1, right=1
    ),
    "ce_gppo": lambda x, q, sign, beta1, beta2, eps_low, eps_high, dual_clip: clipped(
        x, 1 - eps_low, 1 + eps_high, sign, dual_clip, left=beta1, right=beta2
    ),
    "aspo": aspo,
    "sapo": sapo,
    "sapo_unilateral": sapo_unilateral,
    "dac": dac,
    "bapo": bapo,
    "bapo_algorithm1": bapo,
    "gspo": lambda x, q, sign, eps_low, eps_high: clipped(x, 1 - eps_low, 1 + eps_high, sign, None),
    "gmpo": gmpo,
    "vespo": vespo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "drpo": drpo,
}

NEAR = 1e-7
EPS: list[dict[str, Any]] = [{"eps_low": 0, "eps_high": 0}, {"eps_low": NEAR, "eps_high": NEAR}, {"eps_low": 1 - NEAR}]
DUAL: list[dict[str, Any]] = [{"dual_clip": 1 + NEAR}, {"dual_clip": INF}]
BOUNDS: list[dict[str, Any]] = [{"c_low": 0.7, "c_high": 1.3}, {"c_low": 1, "c_high": 1, "dual_clip": 1 + NEAR}]
DELTAS: list[dict[str, Any]] = [{"delta_low": NEAR, "delta_high": NEAR}, {"ratio_cap": 1}, {"delta_low": 1 - NEAR}]
DELTAS += [{"delta_low": 1e-50, "delta_high": 1e-50}]
SPECIAL: dict[str, list[dict[str, Any]]] = {
    "dgpo": [
        *EPS,
        *({"m": m} for m in (1, 1 + 1e-15, 1 + 1e-12, 1 + NEAR, 1.001, 1e9, INF)),
        *({"n": n} for n in (0, 1e-15, NEAR, 100, 1e9, INF)),
        {"n": 0, "m": 1 + NEAR, "right_cap": 1.2, "reverse_cap": 1},
        {"m": 1 + NEAR, "right_cap": 1.2 + NEAR, "reverse_cap": 1 + NEAR},
        {"m": INF, "right_cap": INF, "reverse_cap": INF},
    ],
    "maspo": [
        {"sigma_base": 1e-3, "alpha": 0},
        {"sigma_base": 1e3, "sigma_high": 1e3},
        {"alpha": NEAR, "beta_pos": 0, "beta_neg": 0},
        {"sigma_high": INF, "adv_low": 0, "adv_high": NEAR},
    ],
    "grpo": EPS + DUAL,
    "cispo": [{"cap": 1}, {"cap": 1 + NEAR}, {"cap": INF}],
    "cispo_two_sided": [*EPS, {"eps_low": 1}],
    "gppo": EPS + DUAL,
    "ce_gppo": [*EPS, *DUAL, {"beta1": 0, "beta2": 0}, {"beta1": NEAR, "beta2": NEAR}],
    "aspo": [
        *EPS,
        {"dual_clip_pos": 1 + NEAR, "dual_clip_neg": 1 + NEAR},
        {"dual_clip_pos": INF, "dual_clip_neg": INF},
    ],
    "sapo": [*({"tau_pos": tau, "tau_neg": tau} for tau in (1e-50, 1e-30, NEAR, 1e3))],
    "sapo_unilateral": [*({"tau_pos": tau, "tau_neg": tau} for tau in (1e-50, 1e-30, NEAR, 1e3))],
    "dac": EPS + DUAL,
    "bapo": BOUNDS,
    "bapo_algorithm1": BOUNDS,
    "gspo": EPS,
    "gmpo": [{"log_clip_low": 0, "log_clip_high": 0}, {"log_clip_low": INF, "log_clip_high": INF}],
    "vespo": [{"k_pos": 0, "k_neg": 0}, {"k_pos": NEAR, "lambda_pos": NEAR, "lambda_neg": 70, "k_neg": 60}],
    "dppo_tv": DELTAS,
    "dppo_kl": DELTAS,
    "drpo": [{"delta": 1e-3}, {"delta": 1e-20}, {"delta": INF}],
}
CASES = [
    (name, fields) for name in OBJECTIVES for fields in [*BOUNDS[: 1 if "bapo" in name else 0], *SPECIAL.get(name, [])]
]
CASES += [(name, {}) for name in OBJECTIVES if "bapo" not in name]

STEPS = (0.0, 1e-7, 1e-4, 0.02, 0.1823, 0.2231, 0.7, 1.0986, 5.0, 20.0)
OLD = (-1e-6, -0.05, -0.7, -20.5)
READ_OLD = ("maspo", "dac", "dppo_tv", "dppo_kl", "drpo")


def grid(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log ratios and log π_old whose sum is exact, with π <= 1, so that the log ratio arrives as it is meant."""
    olds = torch.tensor(OLD if name in READ_OLD else OLD[-1:], dtype=dtype)
    x = torch.tensor([s * step for step in STEPS for s in (1, -1)], dtype=dtype)
    old, x = (values.flatten() for values in torch.meshgrid(olds, x, indexing="ij"))
    new = old + x
    kept = (new < 0) & ((new - old) != 0) | (x == 0)
    return (new - old)[kept], old[kept]


def nudged(
    values: tuple[Any, ...], fields: dict[str, Any], eps: float
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of a formula, one of them off by a few units in the last place."""
    for s in (1 - 4 * eps, 1 + 4 * eps):
        for i in range(len(values)):
            yield tuple(v * s if j == i else v for j, v in enumerate(values)), fields
        for key, value in fields.items():
            if value and math.isfinite(value):
                yield values, fields | {key: value * s}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=[f"{name}{fields or ''}" for name, fields in CASES])
def test_weight_and_potential_keep_their_digits(name: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    objective, formula = objectives.make(name, **fields), FORMULAS[name]
    every = {f.name: exact(getattr(objective, f.name)) for f in dataclasses.fields(objective)}
    x, old = grid(name, dtype)
    eps = torch.finfo(dtype).eps
    for sign in (-1, 0, 1):
        column = (old + x).unsqueeze(1)
        tokens = TokenBatch(column, old.unsqueeze(1), torch.full_like(old, sign), torch.ones_like(column).bool())
        w, phi = objective.weight(tokens).squeeze(1).tolist(), objective.potential(tokens).squeeze(1).tolist()
        for i, at in enumerate(zip(x.tolist(), old.tolist(), strict=True)):
            with mp.workdps(40):
                values = tuple(map(mpf, at))
                want_w, want_phi, size = formula(*values, sign, **every)
                slack_w, slack_phi = 8 * eps * abs(want_w), 8 * eps * size
                for others, changed in nudged(values, every, eps):
                    near_w, near_phi, _ = formula(*others, sign, **changed)
                    slack_w, slack_phi = slack_w + abs(near_w - want_w), slack_phi + abs(near_phi - want_phi)
                tiny = torch.finfo(dtype).tiny
                assert abs(w[i] - want_w) <= slack_w + tiny, ("w", at, sign, w[i], float(want_w))
                assert abs(phi[i] - want_phi) <= slack_phi + tiny, ("φ", at, sign, phi[i], float(want_phi))


def test_every_method_has_a_formula() -> None:
    assert set(FORMULAS) == set(OBJECTIVES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_kl_estimators_keep_their_digits(dtype: torch.dtype) -> None:
    """In value and gradient, for policies that nearly agree: expm1(d) - d has the error of the last bit of d."""
    d = torch.cat([s * torch.logspace(-12, 1.3, 60, dtype=torch.float64) for s in (-1, 1)]).to(dtype)
    zero = torch.zeros_like(d)
    few = 8 * torch.finfo(dtype).eps
    exact_d = [mpf(value) for value in d.tolist()]
    logprob = -d.clone().requires_grad_()
    with mp.workdps(40):
        for estimator, value, slope in (
            (k1, lambda d: -d, lambda d: mpf(1)),
            (k2, lambda d: d * d / 2, lambda d: -d),
            (k3, lambda d: mpmath.expm1(d) - d, lambda d: -mpmath.expm1(d)),
        ):
            found = estimator(logprob, zero)
            (gradient,) = torch.autograd.grad(found.sum(), logprob)
            for i, at in enumerate(exact_d):
                assert abs(found[i].item() - value(at)) <= few * abs(value(at))
                assert abs(gradient[i].item() - slope(at)) <= few * abs(slope(at))
    torch.testing.assert_close(k3_ratio(logprob, zero, logprob.detach()), k3(logprob, zero), rtol=0, atol=0)
