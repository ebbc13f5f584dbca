"""MASPO: the gate as it is printed, its clamps, its limits, refused fields."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from closed_forms import INF, NEAR, Method, by_region
from torch import Tensor

from dgpo import TokenBatch, policy_loss
from dgpo.objectives import MASPO, Objective


def maspo_form(x: Any, q: Any, sign: int, sigma_base: Any, alpha: Any, sigma_high: Any, **fields: Any) -> Any:
    r = mpmath.exp(x)
    width = min(max(sigma_base * mpmath.exp(-alpha * q), sigma_base), sigma_high)
    risk = 1 + fields["beta_pos"] if sign > 0 else 1 / (1 + fields["beta_neg"])
    width *= min(max(risk, fields["adv_low"]), fields["adv_high"])
    w = r * mpmath.exp(-((r - 1) ** 2) / (2 * width**2)) if sign * x > 0 else r
    return w, w, w


METHODS = {
    "maspo": Method(
        closed_form=maspo_form,
        settings=[
            {"alpha": 0.5},
            {"alpha": 0, "sigma_base": 0.5},
            {"sigma_high": math.inf, "adv_low": 0, "adv_high": math.inf},
            {"beta_pos": 0.3, "beta_neg": 0.3},
            {"sigma_base": INF, "sigma_high": INF},
        ],
        extreme=[
            {"sigma_base": 1e-3, "alpha": 0},
            {"sigma_base": 1e3, "sigma_high": 1e3},
            {"alpha": NEAR, "beta_pos": 0, "beta_neg": 0},
            {"sigma_high": INF, "adv_low": 0, "adv_high": NEAR},
        ],
    ),
}

test_closed_form = by_region(METHODS)


GRID = [-15.0, -2.0, -0.3, -1e-5, 0.0, 1e-5, 0.3, 1.0, 2.0, 4.0]
DEFAULTS = {
    "sigma_base": 1.0,
    "alpha": 0.3,
    "beta_pos": 0.03,
    "beta_neg": 0.03,
    "sigma_high": 10.0,
    "adv_low": 0.1,
    "adv_high": 10.0,
}
PAPER = {"sigma_high": math.inf, "adv_low": 0, "adv_high": math.inf}


def weights(objective: Objective, x: list[float] | Tensor, advantage: float, old: float) -> Tensor:
    log_ratio = torch.as_tensor(x, dtype=torch.float64).unsqueeze(0)
    old_logprob = torch.full_like(log_ratio, old)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return objective.weight(TokenBatch(old_logprob + log_ratio, old_logprob, advantages, mask)).squeeze(0)


def closed_form(x: float, advantage: float, old: float, fields: dict[str, float]) -> float:
    """The weight of one token as the authors write it, in plain arithmetic."""
    f = DEFAULTS | fields
    r, q = math.exp(x), math.exp(old)
    if advantage * (r - 1) <= 0:
        return r
    width = min(max(f["sigma_base"] / q ** f["alpha"], f["sigma_base"]), f["sigma_high"])
    risk = 1 + f["beta_pos"] * advantage if advantage > 0 else 1 / (1 - f["beta_neg"] * advantage)
    s = width * min(max(risk, f["adv_low"]), f["adv_high"])
    return r * math.exp(-((r - 1) ** 2) / (2 * s**2))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"alpha": 0.5},
        {"alpha": 0.0, "sigma_base": 0.5},
        {"sigma_base": 2.0, "sigma_high": 3.0},
        {"beta_pos": 0.3, "beta_neg": 0.2},
        {"beta_pos": 5.0, "beta_neg": 9.0},
        PAPER,
        PAPER | {"beta_pos": 5.0, "beta_neg": 9.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("advantage", [-4.0, -0.5, 0.0, 0.5, 4.0])
def test_weight_in_closed_form(fields: dict[str, float], advantage: float) -> None:
    for old in (-0.01, -1.0, -6.0, -18.0):
        expected = [closed_form(x, advantage, old, fields) for x in GRID]
        found = weights(MASPO(**fields), GRID, advantage, old).tolist()
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_defaults_are_those_of_the_authors() -> None:
    assert MASPO() == MASPO(**DEFAULTS)


@pytest.mark.parametrize("advantage", [-2.0, 2.0])
@pytest.mark.parametrize("old", [-0.01, -5.0])
def test_a_very_wide_gate_is_the_importance_ratio(advantage: float, old: float) -> None:
    x = torch.linspace(-8, 5, 400, dtype=torch.float64)
    wide = weights(MASPO(sigma_base=1e6, sigma_high=1e6), x, advantage, old)
    torch.testing.assert_close(wide, x.exp(), rtol=1e-6, atol=0)


def test_the_gate_is_one_sided() -> None:
    """Where the policy has moved against its advantage nothing is gated."""
    for advantage in (-1.0, 1.0):
        x = -math.copysign(1.0, advantage) * torch.linspace(0, 6, 50, dtype=torch.float64)
        torch.testing.assert_close(weights(MASPO(), x, advantage, -1.0), x.exp(), rtol=1e-14, atol=0)
        assert (weights(MASPO(), -x[1:], advantage, -1.0) < (-x[1:]).exp()).all()


def test_rare_tokens_and_confident_advantages_have_a_wider_gate() -> None:
    by_probability = [weights(MASPO(), [1.5], 1.0, old).item() for old in (-0.01, -1.0, -3.0, -6.0)]
    assert by_probability == sorted(by_probability)
    assert by_probability[0] < by_probability[-1]
    assert weights(MASPO(), [1.5], 3.0, -1.0) > weights(MASPO(), [1.5], 0.1, -1.0)
    assert weights(MASPO(), [-1.5], -3.0, -1.0) < weights(MASPO(), [-1.5], -0.1, -1.0)


def test_sigma_high_binds_below_the_documented_probability() -> None:
    for alpha, threshold in [(0.3, 10 ** (-1 / 0.3)), (0.5, 1e-2)]:
        for factor, binds in [(0.5, True), (2.0, False)]:
            old = math.log(threshold * factor)
            clamped = weights(MASPO(alpha=alpha), [3.0], 1.0, old)
            free = weights(MASPO(alpha=alpha, sigma_high=math.inf), [3.0], 1.0, old)
            assert (clamped < free * (1 - 1e-6)).item() == binds


def test_the_peak_on_the_right_is_where_the_derivation_puts_it() -> None:
    """w is largest at r = (1 + sqrt(1 + 4 s²))/2."""
    s = 1.03
    x = torch.linspace(0, 2, 200_001, dtype=torch.float64)
    peak = x[weights(MASPO(alpha=0.0), x, 1.0, -1.0).argmax()].exp().item()
    assert peak == pytest.approx((1 + math.sqrt(1 + 4 * s**2)) / 2, rel=1e-4)


def test_the_gate_is_not_differentiated() -> None:
    """The gradient is -A·F·r, and stays positive beyond r(r - 1) = s², where a differentiated gate would turn it."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    logprob = (old + 1.2).requires_grad_()
    advantage, mask = torch.tensor([1.0]), torch.ones(1, 1, dtype=torch.bool)
    out = policy_loss(logprob, old, advantage, mask, objective=MASPO(alpha=0.0))
    (gradient,) = torch.autograd.grad(out.value, logprob)
    assert gradient.item() == pytest.approx(-closed_form(1.2, 1.0, -1.0, {"alpha": 0.0}), rel=1e-12)
    assert out.value.item() == pytest.approx(gradient.item(), rel=1e-12)  # φ = w: the value is -A·w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_probabilities_that_underflow_leave_the_ratio(dtype: torch.dtype) -> None:
    """q = e^-700 gives an infinitely wide gate in the paper's equation, not a NaN."""
    old = torch.full((1, 3), -700.0, dtype=dtype)
    x = torch.tensor([[-3.0, 0.0, 3.0]], dtype=dtype)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for advantage in (-1.0, 1.0):
        tokens = TokenBatch(old + x, old, torch.tensor([advantage]), mask)
        torch.testing.assert_close(MASPO(**PAPER).weight(tokens), x.exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("sigma_base", 0, "(0, inf]"),
        ("sigma_base", -1.0, "(0, inf]"),
        ("sigma_base", math.nan, "(0, inf]"),
        ("alpha", -0.3, "[0, inf)"),
        ("alpha", "0.3", "[0, inf)"),
        ("beta_pos", -0.03, "[0, inf)"),
        ("beta_neg", math.inf, "[0, inf)"),
        ("sigma_high", 0.5, "[sigma_base, inf] = [1, inf]"),
        ("sigma_high", True, "[sigma_base, inf]"),
        ("adv_low", -0.1, "[0, adv_high]"),
        ("adv_low", 11.0, "[0, adv_high] = [0, 10]"),
        ("adv_high", 0, "(0, inf]"),
    ],
)
def test_a_refused_field_names_itself_its_value_and_its_range(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as error:
        MASPO(**({"sigma_high": math.inf} | {field: value}))
    assert str(error.value) == f"MASPO: {field} = {value!r} is not allowed; expected a number in {allowed}"


def test_a_gate_of_width_zero_is_refused() -> None:
    """adv_high = 0 would turn the soft gate into a jump from 1 to 0 at the policy that the step started from."""
    with pytest.raises(ValueError, match=r"MASPO: adv_high = 0 is not allowed; expected a number in \(0, inf\]"):
        MASPO(adv_low=0, adv_high=0)
