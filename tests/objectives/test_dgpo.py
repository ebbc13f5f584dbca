"""DGPO: closed forms by region, the limits that are other methods, bias bounds, guards and refused fields."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import EPS, INF, NEAR, Method, by_region, capped
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

from dgpo import TokenBatch, policy_loss
from dgpo.objectives import DGPO, GRPO, Objective


def dgpo_form(
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


METHODS = {
    "dgpo": Method(
        closed_form=dgpo_form,
        settings=[
            {"n": 0, "m": math.inf},
            {"n": 2, "m": 1},
            {"n": 3, "m": 3, "eps_low": 0.1, "eps_high": 0.28},
            {"n": 0.5, "m": 1.5},
            {"n": math.inf, "m": math.inf},
            {"eps_low": 0, "eps_high": 0},
            {"reverse_cap": 3, "right_cap": 5},
            {"m": 1, "reverse_cap": 1.5},
        ],
        extreme=[
            *EPS,
            *({"m": m} for m in (1, 1 + 1e-15, 1 + 1e-12, 1 + NEAR, 1.001, 1e9, INF)),
            *({"n": n} for n in (0, 1e-15, NEAR, 100, 1e9, INF)),
            {"n": 0, "m": 1 + NEAR, "right_cap": 1.2, "reverse_cap": 1},
            {"m": 1 + NEAR, "right_cap": 1.2 + NEAR, "reverse_cap": 1 + NEAR},
            {"m": INF, "right_cap": INF, "reverse_cap": INF},
        ],
    ),
}

test_closed_form = by_region(METHODS)


def tokens_at(x: list[float] | Tensor, advantage: float) -> TokenBatch:
    log_ratio = torch.as_tensor(x, dtype=torch.float64).unsqueeze(0)
    old = torch.full_like(log_ratio, -3.0)
    return TokenBatch(old + log_ratio, old, torch.tensor([advantage]), torch.ones_like(old, dtype=torch.bool))


def weights(objective: Objective, x: list[float] | Tensor, advantage: float) -> Tensor:
    return objective.weight(tokens_at(x, advantage)).squeeze(0)


def closed_form(x: float, advantage: float, n: float, m: float, eps_low: float, eps_high: float) -> float:
    """The paper's weight of one token, by region, as it is printed."""
    r, lo, hi = math.exp(x), 1 - eps_low, 1 + eps_high
    if advantage < 0 and r < lo:
        return r ** (n + 1) / lo**n if n < math.inf else 0.0
    if advantage > 0 and r > hi:
        return r ** (1 - 1 / m) * hi ** (1 / m)
    return r


GRID = [-7.0, -2.0, -0.5, -0.23, -0.21, -0.01, 0.0, 0.01, 0.17, 0.19, 0.4, 1.0, 3.0, 7.0]
SETTINGS = [
    (n, m, eps_low, eps_high)
    for n, m in [(0, 1), (1, 1), (1, 2), (2, 2), (3, 3), (0.5, 1.5), (2.7, 4.2), (0, math.inf), (math.inf, math.inf)]
    for eps_low, eps_high in [(0.2, 0.2), (0.1, 0.28), (0.0, 0.0), (0.9, 3.0)]
]


@pytest.mark.parametrize(("n", "m", "eps_low", "eps_high"), SETTINGS)
@pytest.mark.parametrize("advantage", [-1.7, 0.0, 0.6])
def test_weight_by_region(n: float, m: float, eps_low: float, eps_high: float, advantage: float) -> None:
    objective = DGPO(n=n, m=m, eps_low=eps_low, eps_high=eps_high)
    expected = [closed_form(x, advantage, n, m, eps_low, eps_high) for x in GRID]
    assert weights(objective, GRID, advantage).tolist() == pytest.approx(expected, rel=1e-11, abs=0)


def test_defaults_are_the_papers() -> None:
    assert DGPO() == DGPO(n=1, m=2, eps_low=0.2, eps_high=0.2, reverse_cap=None, right_cap=None)


def integral(x: float, advantage: float, fields: dict[str, Any], steps: int = 2000) -> float:
    """1 + ∫_0^x w dx by Simpson's rule on each side of the kinks of w: a potential that is 1 on-policy."""
    lo, hi = math.log(1 - fields["eps_low"]), math.log(1 + fields["eps_high"])
    kinks = [lo, hi]
    if fields.get("reverse_cap"):
        kinks.append(math.log(fields["reverse_cap"]))
    if fields.get("right_cap") and fields["m"] > 1:
        kinks.append(hi + (math.log(fields["right_cap"]) - hi) / (1 - 1 / fields["m"]))
    ends = sorted([0.0, x, *(kink for kink in kinks if min(0.0, x) < kink < max(0.0, x))])
    cap = {-1: fields.get("reverse_cap"), 1: fields.get("right_cap")}[int(math.copysign(1, advantage))] or math.inf
    shape = {key: fields[key] for key in ("n", "m", "eps_low", "eps_high")}

    def w(at: float) -> float:
        return min(closed_form(at, advantage, **shape), cap)

    total = 0.0
    for a, b in itertools.pairwise(ends):
        h = (b - a) / steps
        inner = sum((4 if k % 2 else 2) * w(a + k * h) for k in range(1, steps))
        nudge = 1e-13  # the ends belong to the piece between them
        total += h / 3 * (w(a + nudge) + inner + w(b - nudge))
    return 1 + math.copysign(total, x)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "m": 2, "eps_low": 0.2, "eps_high": 0.2},
        {"n": 3, "m": 3, "eps_low": 0.1, "eps_high": 0.28},
        {"n": 0.5, "m": 1, "eps_low": 0.2, "eps_high": 0.2},
        {"n": 0, "m": math.inf, "eps_low": 0.2, "eps_high": 0.2},
        {"n": math.inf, "m": 2, "eps_low": 0.2, "eps_high": 0.2},
        {"n": 1, "m": 2, "eps_low": 0.2, "eps_high": 0.2, "reverse_cap": 2.5, "right_cap": 1.9},
        {"n": 1, "m": 1, "eps_low": 0.2, "eps_high": 0.2, "reverse_cap": 1.0, "right_cap": 1.5},
        {"n": 1, "m": 2, "eps_low": 0.2, "eps_high": 0.2, "right_cap": 1.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_potential_is_the_integral_of_the_weight(fields: dict[str, Any], advantage: float) -> None:
    """Without `reverse_cap` reached inside the clip range φ is r there, so φ(0) = 1 fixes the constant."""
    grid = [-3.0, -0.5, -0.1, 0.1, 0.5, 1.5, 3.0]
    potential = DGPO(**fields).potential(tokens_at(grid, advantage)).squeeze(0)
    expected = [integral(x, advantage, fields) for x in grid]
    assert potential.tolist() == pytest.approx(expected, rel=1e-9)


def test_potential_in_closed_form() -> None:
    lo, hi = 0.8, 1.2
    u, v = math.exp(-1.0) / lo, math.exp(1.0) / hi
    one = DGPO(n=1, m=2)
    assert one.potential(tokens_at([-1.0], -1.0)).item() == pytest.approx(lo * (1 + (u**2 - 1) / 2), rel=1e-12)
    assert one.potential(tokens_at([1.0], 1.0)).item() == pytest.approx(hi * (1 + (v**0.5 - 1) / 0.5), rel=1e-12)
    assert DGPO(m=1).potential(tokens_at([1.0], 1.0)).item() == pytest.approx(hi * (1 + math.log(v)), rel=1e-12)
    assert DGPO(n=math.inf).potential(tokens_at([-1.0], -1.0)).item() == pytest.approx(lo, rel=1e-12)


# --- limits and identities --------------------------------------------------------------------------------------------

X = torch.linspace(-19.9, 19.9, 797, dtype=torch.float64)


@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
def test_n_zero_and_m_infinite_is_the_importance_ratio(advantage: float) -> None:
    torch.testing.assert_close(weights(DGPO(n=0, m=math.inf), X, advantage), X.exp(), rtol=1e-12, atol=0)


def test_n_infinite_is_the_left_of_grpo() -> None:
    torch.testing.assert_close(weights(DGPO(n=math.inf), X, -1.0), weights(GRPO(), X, -1.0), rtol=1e-14, atol=0)
    assert (weights(DGPO(n=math.inf), X[math.log(0.8) > X], -1.0) == 0).all()


def test_m_one_is_the_constant_weight_of_gppo_on_the_right() -> None:
    right = X[math.log(1.2) < X]
    torch.testing.assert_close(weights(DGPO(m=1), right, 1.0), torch.full_like(right, 1.2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_weight_is_monotone_in_n_and_m(advantage: float) -> None:
    """More n is a faster decay on the left, more m a slower one on the right; real values lie in between."""
    ladder = [weights(DGPO(n=n, m=2), X, advantage) for n in (0, 0.5, 1, 1.7, 3, math.inf)]
    assert all((more <= less * (1 + 1e-12)).all() for less, more in itertools.pairwise(ladder))
    ladder = [weights(DGPO(n=1, m=m), X, advantage) for m in (1, 1.3, 2, 2.5, 7, math.inf)]
    assert all((less <= more * (1 + 1e-12)).all() for less, more in itertools.pairwise(ladder))


def test_weight_on_the_probability_vanishes_on_the_left_and_falls_on_the_right() -> None:
    """The claim of the paper: w/π goes to 0 as π^n on the left, and as π^(-1/m) it decreases on the right."""
    x = torch.tensor([-6.0, -5.0, -4.0], dtype=torch.float64)
    share = weights(DGPO(n=2), x, -1.0) / x.exp()
    assert share.log().diff().tolist() == pytest.approx([2.0, 2.0], rel=1e-12)
    share = weights(DGPO(m=3), -x, 1.0) / (-x).exp()
    assert share.log().diff().tolist() == pytest.approx([1 / 3, 1 / 3], rel=1e-12)


# --- bias against the importance ratio --------------------------------------------------------------------------------

logs = st.floats(-19, 19)
ratio_bias = pytest.mark.parametrize("advantage", [-1.0, 1.0])


def bias(objective: Objective, x: float, advantage: float) -> float:
    return abs(weights(objective, [x], advantage).item() - math.exp(x))


@given(x=st.floats(-19, math.log(0.8)), n=st.floats(0, 5))
def test_bias_on_the_left_in_closed_form(x: float, n: float) -> None:
    u = math.exp(x) / 0.8
    assert bias(DGPO(n=n), x, -1.0) == pytest.approx(0.8 * u * (1 - u**n), rel=1e-9, abs=1e-13)


@given(x=st.floats(math.log(1.2), 19), m=st.floats(1, 9))
def test_bias_on_the_right_in_closed_form(x: float, m: float) -> None:
    v = math.exp(x) / 1.2
    assert bias(DGPO(m=m), x, 1.0) == pytest.approx(1.2 * v * (1 - v ** (-1 / m)), rel=1e-9, abs=1e-13)


@given(x=st.floats(-19, math.log(0.8)), m=st.floats(1, 9))
def test_n_one_is_never_more_biased_than_gppo_on_the_left(x: float, m: float) -> None:
    u = math.exp(x) / 0.8
    assert bias(DGPO(n=1, m=m), x, -1.0) <= 0.8 * (1 - u) + 1e-13


@given(x=st.floats(math.log(1.2), 19), n=st.floats(0, 5), m=st.floats(1, 9))
def test_no_m_is_more_biased_than_gppo_on_the_right(x: float, n: float, m: float) -> None:
    v = math.exp(x) / 1.2
    assert bias(DGPO(n=n, m=m), x, 1.0) <= 1.2 * (v - 1) * (1 + 1e-12) + 1e-13


@ratio_bias
@given(x=logs, n=st.floats(0, 50), m=st.floats(1, 50))
def test_never_more_biased_than_grpo(advantage: float, x: float, n: float, m: float) -> None:
    assert bias(DGPO(n=n, m=m), x, advantage) <= bias(GRPO(), x, advantage) * (1 + 1e-12) + 1e-13


def test_n_two_is_more_biased_than_gppo_near_the_boundary() -> None:
    """The bound of n = 1 does not extend: with u(1 - u²) against 1 - u, n = 2 loses for u > 0.618."""
    for u, loses in [(0.5, False), (0.61, False), (0.63, True), (0.95, True)]:
        assert (bias(DGPO(n=2), math.log(0.8 * u), -1.0) > 0.8 * (1 - u)) == loses


# --- guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("advantage", "guard"), [(-1.0, {"reverse_cap": 3.0}), (1.0, {"right_cap": 3.0})])
def test_a_guard_caps_its_side_and_keeps_the_gradient(advantage: float, guard: dict[str, float]) -> None:
    free, capped = weights(DGPO(), X, advantage), weights(DGPO(**guard), X, advantage)
    torch.testing.assert_close(capped, free.clamp(max=3.0), rtol=1e-13, atol=0)
    assert (capped > 0).all()
    assert (free > 3).any()
    torch.testing.assert_close(weights(DGPO(**guard), X, -advantage), weights(DGPO(), X, -advantage), rtol=0, atol=0)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_lowest_right_cap_is_the_constant_weight(m: float) -> None:
    torch.testing.assert_close(
        weights(DGPO(m=m, right_cap=1.2), X, 1.0), weights(DGPO(m=1), X, 1.0), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize(("advantage", "guard"), [(-1.0, "reverse_cap"), (1.0, "right_cap")])
def test_an_infinite_guard_is_no_guard(advantage: float, guard: str) -> None:
    """In the weight and in the potential, which must not form inf * 0."""
    tokens = tokens_at(X, advantage)
    guarded = DGPO(**{guard: math.inf})
    torch.testing.assert_close(guarded.weight(tokens), DGPO().weight(tokens), rtol=0, atol=0)
    torch.testing.assert_close(guarded.potential(tokens), DGPO().potential(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("objective", "bound"),
    [
        (DGPO(reverse_cap=3, right_cap=5), 5.0),
        (DGPO(m=1, reverse_cap=1.5), 1.5),
        (DGPO(m=1, reverse_cap=1.0), 1.2),
        (DGPO(), math.inf),
        (DGPO(right_cap=5), math.inf),
    ],
)
def test_the_claimed_upper_bound_is_attained(objective: DGPO, bound: float) -> None:
    assert objective.properties().upper_bound == bound
    largest = max(weights(objective, X, advantage).max().item() for advantage in (-1.0, 1.0))
    assert largest == pytest.approx(min(bound, math.exp(19.9)), rel=1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("n", -1, "[0, inf]"),
        ("n", math.nan, "[0, inf]"),
        ("n", True, "[0, inf]"),
        ("n", "2", "[0, inf]"),
        ("n", None, "[0, inf]"),
        ("m", 0.5, "[1, inf]"),
        ("m", 0, "[1, inf]"),
        ("m", math.nan, "[1, inf]"),
        ("eps_low", 1.5, "[0, 1)"),
        ("eps_low", 1, "[0, 1)"),
        ("eps_low", -0.1, "[0, 1)"),
        ("eps_low", math.nan, "[0, 1)"),
        ("eps_high", -0.1, "[0, inf)"),
        ("eps_high", math.inf, "[0, inf)"),
        ("eps_high", "0.2", "[0, inf)"),
        ("reverse_cap", 0.5, "[1, inf], or None"),
        ("reverse_cap", False, "[1, inf], or None"),
        ("right_cap", 1.1, "[1 + eps_high, inf] = [1.2, inf], or None"),
        ("right_cap", math.nan, "[1 + eps_high, inf], or None"),
    ],
)
def test_a_refused_field_names_itself_its_value_and_its_range(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as error:
        DGPO(**{field: value})
    assert str(error.value) == f"DGPO: {field} = {value!r} is not allowed; expected a number in {allowed}"


def test_the_range_of_right_cap_follows_eps_high() -> None:
    assert DGPO(eps_high=0.05, right_cap=1.1).right_cap == 1.1
    with pytest.raises(ValueError, match=r"right_cap = 1\.25 .*\[1\.28, inf\]"):
        DGPO(eps_high=0.28, right_cap=1.25)


@pytest.mark.parametrize("fields", [{"n": 0}, {"n": math.inf}, {"m": 1}, {"m": math.inf}, {"eps_low": 0}, {"n": 0.1}])
def test_the_ends_of_the_ranges_are_allowed(fields: dict[str, float]) -> None:
    old = torch.tensor([[-1.0, -1.0, -1.0]], dtype=torch.float64)
    logprob = (old + torch.tensor([[-2.0, 0.0, 2.0]])).requires_grad_()
    advantage = torch.tensor([[-1.0, 1.0, 1.0]])
    out = policy_loss(logprob, old, advantage, torch.ones(1, 3, dtype=torch.bool), objective=DGPO(**fields))
    out.value.backward()
    assert out.value.isfinite()
    assert logprob.grad is not None
    assert logprob.grad[0, 1].item() == pytest.approx(-1 / 3, rel=1e-12)
