"""The methods as one family: identities between methods, the reference's table, and bias."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
import torch
from closed_forms import tokens_at
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo import TokenBatch, objectives
from dgpo.objectives import (
    ASPO,
    CEGPPO,
    CISPO,
    DAC,
    DGPO,
    DPPOKL,
    DPPOTV,
    DRPO,
    GMPO,
    GPPO,
    GRPO,
    GSPO,
    IS,
    MASPO,
    SAPO,
    VESPO,
    CISPOTwoSided,
    Objective,
    SAPOUnilateral,
)
from dgpo.regions import REGIONS, regions

X = torch.linspace(-19.9, 19.9, 797, dtype=torch.float64)
both_signs = pytest.mark.parametrize("advantage", [-1.3, 1.3], ids=["A<0", "A>0"])
every_sign = pytest.mark.parametrize("advantage", [-1.3, 0.0, 1.3], ids=["A<0", "A=0", "A>0"])


def weights(objective: Objective, x: float | list[float] | Tensor, advantage: float, old: float = -3.0) -> Tensor:
    return objective.weight(tokens_at(x, advantage, old)).squeeze(1)


def test_aspo_widens_the_bounds_of_uncertain_tokens() -> None:
    """Those above the quantile of their own response; masked positions have no entropy."""
    entropy = torch.tensor([[0.1, 0.2, 0.3, 5.0, 9.0], [4.0, 0.1, 0.2, 0.3, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 4 + [False]] * 2)
    old = torch.full((2, 5), -1.0, dtype=torch.float64)
    fields: dict[str, Any] = {"eps_low_high_entropy": 0.4, "eps_high_high_entropy": 0.5}
    for sign, x in ((1.0, math.log(1.3)), (-1.0, math.log(0.7))):
        advantage = torch.full((2,), sign, dtype=torch.float64)
        tokens = TokenBatch(old + x, old, advantage, mask, entropy=entropy)
        kept = ASPO(entropy_quantile=0.7, **fields).weight(tokens) > 0
        assert kept[mask].tolist() == [False, False, False, True, True, False, False, False]
        assert not (ASPO(**fields).weight(tokens) > 0)[mask].any()
    with pytest.raises(ValueError, match=r"ASPO\(.*entropy_quantile=0.7.*\) needs entropy \[B, T\], got None"):
        ASPO(entropy_quantile=0.7).weight(TokenBatch(old, old, advantage, mask))


# --- identities -------------------------------------------------------------------------------------------------------


def assert_same(one: Objective, other: Objective, x: Tensor, advantage: float, old: float = -3.0) -> None:
    mine, theirs = weights(one, x, advantage, old), weights(other, x, advantage, old)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


def assert_same_regions(one: Objective, other: Objective) -> None:
    """For either sign of A, at every ratio."""
    for advantage in (-1.3, 1.3):
        tokens = tokens_at(X, advantage)
        mine, theirs = (regions(tokens, objective.boundaries(tokens)) for objective in (one, other))
        for name in REGIONS:
            assert torch.equal(mine[name], theirs[name]), name


def test_methods_with_the_same_weights_have_the_same_regions() -> None:
    """Not only their fields': DGPO has no boundary on a side where n = 0 or m = inf leave the ratio as it is."""
    free = {"dual_clip": None, "eps_low": 0.1, "eps_high": 0.28}
    assert_same_regions(DGPO(n=0, m=math.inf), IS())
    assert_same_regions(DGPO(n=0, m=1, eps_high=4, reverse_cap=5), CISPO(cap=5))
    assert_same_regions(DGPO(n=0, m=math.inf, reverse_cap=5, right_cap=5), CISPO(cap=5))
    assert_same_regions(CEGPPO(beta1=1, beta2=1, **free), GPPO(**free))
    assert_same_regions(CEGPPO(beta1=0, beta2=0, **free), GRPO(**free))
    assert_same_regions(CISPOTwoSided(eps_low=1, eps_high=4), CISPO(cap=5))
    assert_same_regions(MASPO(sigma_base=math.inf, sigma_high=math.inf), IS())
    assert_same_regions(DPPOTV(delta_low=math.inf, delta_high=math.inf, ratio_cap=5), CISPO(cap=5))


@every_sign
def test_dgpo_without_decay_is_importance_sampling(advantage: float) -> None:
    assert_same(DGPO(n=0, m=math.inf), IS(), X, advantage)


def test_left_of_dgpo_with_infinite_n_is_grpo() -> None:
    assert_same(DGPO(n=math.inf), GRPO(), X, -1.3)


@every_sign
def test_dgpo_becomes_gppo_on_the_right(advantage: float) -> None:
    assert_same(DGPO(m=1, eps_high=0.28), GPPO(eps_high=0.28), X[math.log(0.8) < X], advantage)


def test_gppos_left_is_outside_of_dgpos_range() -> None:
    """lo · u^(n+1) at n = -1."""
    left = X[math.log(0.8) > X]
    torch.testing.assert_close(weights(GPPO(), left, -1.0), 0.8 * (left.exp() / 0.8) ** 0, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="n = -1 is not allowed"):
        DGPO(n=-1)


@every_sign
@pytest.mark.parametrize("cap", [1.2, 2.0, 5.0])
def test_dgpo_with_a_reverse_cap_is_cispo(cap: float, advantage: float) -> None:
    if advantage == 0:
        return  # A = 0 has no side; DGPO's caps do not apply to it, and its weight is multiplied by 0
    assert_same(DGPO(n=0, m=1, eps_high=cap - 1, reverse_cap=cap), CISPO(cap=cap), X, advantage)


@both_signs
@pytest.mark.parametrize("dual_clip", [1.5, 3.0])
@pytest.mark.parametrize("beta1", [0.75, 2.0, 5.0])
def test_ce_gppo_with_a_dual_clip_is_the_authors_loss(beta1: float, dual_clip: float, advantage: float) -> None:
    """Autograd of their formula: for A < 0 the loss is at most dual_clip · |A|, which drops a larger beta1 · lo too."""
    x = (X + 1e-3).requires_grad_()
    r, fixed = x.exp(), x.detach().exp()
    left, right = (fixed < 0.8) & (advantage < 0), (fixed > 1.2) & (advantage > 0)
    kept = torch.where(left, beta1 * 0.8 / fixed * r, torch.where(right, 1.2 / fixed * r, r))
    loss = -advantage * kept
    if advantage < 0:
        loss = torch.minimum(torch.full_like(loss, -advantage * dual_clip), loss)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    objective = CEGPPO(beta1=beta1, dual_clip=dual_clip)
    found = weights(objective, x.detach(), advantage)
    torch.testing.assert_close(-advantage * found, gradient)
    assert found.max() <= objective.properties().upper_bound * (1 + 1e-12)


@every_sign
@pytest.mark.parametrize("dual_clip", [None, 3.0, 10.0])
@pytest.mark.parametrize("eps", [(0.2, 0.2), (0.1, 0.28), (0.0, 0.0)])
def test_ce_gppo_is_gppo_at_one_and_grpo_at_zero(
    eps: tuple[float, float], dual_clip: float | None, advantage: float
) -> None:
    fields: dict[str, Any] = {"eps_low": eps[0], "eps_high": eps[1], "dual_clip": dual_clip}
    assert_same(CEGPPO(beta1=1, beta2=1, **fields), GPPO(**fields), X, advantage)
    assert_same(CEGPPO(beta1=0, beta2=0, **fields), GRPO(**fields), X, advantage)


@every_sign
def test_maspo_with_a_wide_gate_is_importance_sampling(advantage: float) -> None:
    assert_same(MASPO(sigma_base=math.inf, sigma_high=math.inf), IS(), X, advantage)
    assert_same(MASPO(sigma_base=1e16, sigma_high=math.inf), IS(), X, advantage)


@every_sign
@pytest.mark.parametrize("cls", [SAPO, SAPOUnilateral])
def test_sapo_without_temperature_is_importance_sampling(cls: type[SAPO], advantage: float) -> None:
    flat = cls(tau_pos=1e-20, tau_neg=1e-20)
    assert_same(flat, IS(), X, advantage)
    phi = flat.potential(tokens_at(X, advantage)).squeeze(1)
    torch.testing.assert_close(phi, X.exp(), rtol=1e-12, atol=1e-12)


@every_sign
@pytest.mark.parametrize("eps", [(0.2, 0.2), (3e-4, 4e-4)])
def test_sequence_level_on_one_token_is_grpo(eps: tuple[float, float], advantage: float) -> None:
    low, high = eps
    x = X[(X - math.log1p(-low)).abs().minimum((X - math.log1p(high)).abs()) > 1e-9]
    assert_same(GSPO(eps_low=low, eps_high=high), GRPO(eps_low=low, eps_high=high), x, advantage)
    in_logs = GMPO(log_clip_low=-math.log1p(-low), log_clip_high=math.log1p(high))
    assert_same(in_logs, GRPO(eps_low=low, eps_high=high), x, advantage)


@every_sign
def test_vespo_on_one_token_without_decay_is_importance_sampling(advantage: float) -> None:
    """Down to its floor of log W."""
    flat = VESPO(k_pos=1, k_neg=1, lambda_pos=1e-22, lambda_neg=1e-22)
    assert_same(flat, IS(), X[math.log(1e-8) < X], advantage)
    assert weights(flat, -19.0, advantage).item() == pytest.approx(1e-8, rel=1e-12)


@every_sign
@pytest.mark.parametrize("delta", [1.0, 7.0])
@pytest.mark.parametrize("old", [-1e-3, -3.0, -19.9])
def test_dppo_without_a_trust_region_is_truncated_importance_sampling(
    delta: float, old: float, advantage: float
) -> None:
    possible = X[-old > X]
    assert_same(DPPOTV(delta_low=delta, delta_high=delta), CISPO(cap=20), possible, advantage, old)
    assert_same(DPPOKL(delta_low=math.inf, delta_high=math.inf), CISPO(cap=20), possible, advantage, old)


@every_sign
@pytest.mark.parametrize("old", [-1e-3, -3.0, -19.9])
def test_drpo_without_a_penalty_is_importance_sampling(advantage: float, old: float) -> None:
    assert_same(DRPO(delta=math.inf), IS(), X, advantage, old)


@every_sign
@pytest.mark.parametrize("eps_low", [1.0, 10.0])
def test_two_sided_cispo_without_a_lower_bound_is_cispo(eps_low: float, advantage: float) -> None:
    assert_same(CISPOTwoSided(eps_low=eps_low, eps_high=4.0), CISPO(cap=5.0), X, advantage)


# --- what depends on π_old --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.05, 0.199])
def test_dppo_never_drops_a_rare_token_on_the_left(q: float) -> None:
    """w/π stays 1/q for q <= delta_low; the declared limit "zero" is that of the others."""
    x = X[X < 0]
    torch.testing.assert_close(weights(DPPOTV(), x, -1.0, math.log(q)), x.exp(), rtol=1e-12, atol=0)
    assert weights(DPPOTV(), -8.0, -1.0, math.log(0.201)).item() == 0


def test_dac_widens_for_rare_tokens() -> None:
    """|(r - 1) π| <= eps at the boundary, until the lower bound rests at 1/2 and the upper at its cap."""
    for q in (0.9, 0.7, 0.65):
        edge = (1 + math.sqrt(1 - 4 * 0.16 / q)) / 2
        assert (1 - edge) * edge * q == pytest.approx(0.16)
        near = [math.log(edge * (1 - 1e-9)), math.log(edge * (1 + 1e-9))]
        assert (weights(DAC(), near, -1.0, math.log(q)) > 0).tolist() == [False, True]
    for q in (0.6, 1e-3, 1e-300):
        assert (weights(DAC(), [math.log(0.499), math.log(0.501)], -1.0, math.log(q)) > 0).tolist() == [False, True]
    near = [math.log(9.999), math.log(10.001)]
    assert (weights(DAC(), near, 1.0, -20.0) > 0).tolist() == [True, False]
    assert (weights(DAC(dual_clip=12), near, 1.0, -20.0) > 0).tolist() == [True, True]


@pytest.mark.parametrize("eps", [{"eps_low": 0}, {"eps_high": 0}])
def test_dac_without_room_is_finite_where_one_over_q_overflows(eps: dict[str, float]) -> None:
    assert weights(DAC(**eps), [-1.0, 0.0, 1.0], 1.0, -2000.0).isfinite().all()
    assert weights(DAC(**eps), 0.0, -1.0, -2000.0).item() == 1


def test_drpo_turns_negative_beyond_delta() -> None:
    tight = weights(DRPO(delta=0.1), [math.log(0.5), math.log(0.7), math.log(1.5)], 1.0, math.log(0.4))
    assert (tight > 0).tolist() == [True, True, False]
    assert (weights(DRPO(delta=0.1), math.log(0.5), -1.0, math.log(0.4)) < 0).all()
    below = X[X < -0.11]
    kept = weights(DRPO(), below, -1.0, -0.1) / below.exp()
    assert 0.92 <= kept.min() <= kept.max() <= 1.08


# --- the table of weights of the reference ----------------------------------------------------------------------------

# q = e^-6.9, eps 0.2, to the digits that are printed there; columns: (A, log ratio)
COLUMNS = [(-1, -0.5), (-1, -2.0), (-1, 2.0), (1, -2.0), (1, 0.4), (1, 3.0)]
WEIGHTS: dict[str, tuple[Objective, str]] = {
    "IS": (IS(), ".607 .135 7.39 .135 1.49 20.1"),
    "GRPO": (GRPO(), "0 0 7.39 .135 0 0"),
    "GRPO + dual clip 3": (GRPO(dual_clip=3), "0 0 0 .135 0 0"),
    "CISPO two-sided": (CISPOTwoSided(), ".8 .8 1.2 .8 1.2 1.2"),
    "CISPO": (CISPO(cap=1.2), ".607 .135 1.2 .135 1.2 1.2"),
    "GPPO": (GPPO(), ".8 .8 7.39 .135 1.2 1.2"),
    "CE-GPPO(.75, 1)": (CEGPPO(beta1=0.75, beta2=1), ".6 .6 7.39 .135 1.2 1.2"),
    "ASPO": (ASPO(), "0 0 3 3 0 0"),
    "SAPO": (SAPO(), ".581 .111 .036 .113 1.41 4.13e-7"),
    "DAC": (DAC(), ".607 0 7.39 .135 1.49 0"),
    "MASPO(.3)": (MASPO(alpha=0.3), ".606 .134 7.39 .135 1.49 1.31"),
    "DGPO(1,1)": (DGPO(n=1, m=1), ".460 .0229 7.39 .135 1.20 1.2"),
    "DGPO(1,2)": (DGPO(n=1, m=2), ".460 .0229 7.39 .135 1.34 4.91"),
    "DGPO(2,2)": (DGPO(n=2, m=2), ".349 .00387 7.39 .135 1.34 4.91"),
    "DGPO(3,3)": (DGPO(n=3, m=3), ".264 6.55e-4 7.39 .135 1.39 7.85"),
    "DPPO-TV": (DPPOTV(), ".607 .135 7.39 .135 1.49 20"),
    "DRPO": (DRPO(), ".607 .135 7.39 .135 1.49 20.1"),
}


@pytest.mark.parametrize("row", WEIGHTS)
@pytest.mark.parametrize("column", range(len(COLUMNS)), ids=[f"A={a:+d} x={x:+}" for a, x in COLUMNS])
def test_weights_of_the_reference_table(row: str, column: int) -> None:
    objective, numbers = WEIGHTS[row]
    advantage, x = COLUMNS[column]
    weight = weights(objective, x, advantage, old=-6.9).item()
    printed = Decimal(numbers.split()[column])
    if printed == 0:
        assert weight == 0
    else:
        half_a_digit = 0.5 * 10.0 ** printed.as_tuple().exponent
        assert weight == pytest.approx(float(printed), abs=half_a_digit * (1 + 1e-9))


# --- bias against importance sampling ---------------------------------------------------------------------------------

left_of = st.floats(-19, math.log(0.8) - 1e-9)
right_of = st.floats(math.log(1.2) + 1e-9, 19)
sharpness = st.floats(0, 6)
root = st.floats(1, 9)


def bias(objective: Objective, x: float, advantage: float) -> float:
    return abs(weights(objective, x, advantage).item() - math.exp(x))


@given(x=left_of, beta=st.floats(0, 2))
def test_bias_on_the_left(x: float, beta: float) -> None:
    """|w - r| in units of lo, with u = r/lo."""
    u = math.exp(x) / 0.8
    for objective, expected in [
        (GRPO(), u),
        (GPPO(), 1 - u),
        (CISPOTwoSided(), 1 - u),
        (CEGPPO(beta1=beta), abs(beta - u)),
        (CISPO(), 0.0),
        (ASPO(), u),
    ]:
        assert bias(objective, x, -1.0) / 0.8 == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(x=right_of, beta=st.floats(0, 2))
def test_bias_on_the_right(x: float, beta: float) -> None:
    """|w - r| in units of hi, with v = r/hi."""
    v = math.exp(x) / 1.2
    for objective, expected in [
        (GRPO(), v),
        (GPPO(), v - 1),
        (CISPOTwoSided(), v - 1),
        (CISPO(cap=1.2), v - 1),
        (CEGPPO(beta2=beta), abs(beta - v)),
        (DGPO(m=math.inf), 0.0),
    ]:
        assert bias(objective, x, 1.0) / 1.2 == pytest.approx(expected, rel=1e-9, abs=1e-11 * (1 + v))


@given(x=left_of, m=root)
def test_dgpo_with_n_one_is_never_more_biased_than_constant_weights_on_the_left(x: float, m: float) -> None:
    for other in (GPPO(), CISPOTwoSided()):
        assert bias(DGPO(n=1, m=m), x, -1.0) <= bias(other, x, -1.0) + 1e-13


def test_dgpo_with_n_two_is_only_far_from_the_boundary() -> None:
    golden_ratio = (math.sqrt(5) - 1) / 2  # the root of u(1 - u²) = 1 - u
    for u in (0.05, 0.3, golden_ratio - 1e-6, golden_ratio + 1e-6, 0.8, 0.99):
        less = bias(DGPO(n=2), math.log(0.8 * u), -1.0) < bias(GPPO(), math.log(0.8 * u), -1.0)
        assert less == (u < golden_ratio)


@given(x=right_of, n=sharpness, m=root)
def test_dgpo_is_never_more_biased_than_constant_weights_on_the_right(x: float, n: float, m: float) -> None:
    for other in (GPPO(), CISPOTwoSided(), CISPO(cap=1.2)):
        assert bias(DGPO(n=n, m=m), x, 1.0) <= bias(other, x, 1.0) * (1 + 1e-12) + 1e-13


@both_signs
@given(x=st.floats(-19, 19), n=sharpness, m=root)
def test_dgpo_is_never_more_biased_than_a_hard_clip(advantage: float, x: float, n: float, m: float) -> None:
    assert bias(DGPO(n=n, m=m), x, advantage) <= bias(GRPO(), x, advantage) * (1 + 1e-12) + 1e-13


@both_signs
@given(x=st.floats(-19, 19))
def test_cispo_and_aspo_are_biased_in_the_reverse_regions_and_dgpo_is_not(advantage: float, x: float) -> None:
    reverse = (advantage > 0 and x < math.log(0.8)) or (advantage < 0 and x > math.log(1.2))
    if not reverse:
        return
    assert bias(DGPO(), x, advantage) <= 1e-12 * math.exp(x)
    assert bias(GPPO(), x, advantage) <= 1e-12 * math.exp(x)
    assert bias(CISPOTwoSided(), x, advantage) > 0
    if advantage > 0:
        assert bias(ASPO(), x, advantage) > 0


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("cispo", {"cap": 0.2}, "CISPO: cap = 0.2 is not allowed; expected a number in [1, inf]"),
    (
        "cispo_two_sided",
        {"eps_low": -0.1},
        "CISPOTwoSided: eps_low = -0.1 is not allowed; expected a number in [0, inf)",
    ),
    ("cispo_two_sided", {"eps_high": math.inf}, "eps_high = inf is not allowed; expected a number in [0, inf)"),
    ("gppo", {"eps_low": 1}, "eps_low = 1 is not allowed; expected a number in [0, 1)"),
    ("gppo", {"dual_clip": 1}, "dual_clip = 1 is not allowed; expected a number in (1, inf]"),
    ("ce_gppo", {"beta1": -1}, "CEGPPO: beta1 = -1 is not allowed; expected a number in [0, inf)"),
    ("ce_gppo", {"beta2": math.inf}, "CEGPPO: beta2 = inf is not allowed; expected a number in [0, inf)"),
    ("aspo", {"dual_clip_pos": 1}, "ASPO: dual_clip_pos = 1 is not allowed; expected a number in (1, inf]"),
    ("aspo", {"dual_clip_neg": 0.5}, "ASPO: dual_clip_neg = 0.5 is not allowed; expected a number in (1, inf]"),
    ("aspo", {"entropy_quantile": 1}, "ASPO: entropy_quantile = 1 is not allowed; expected a number in (0, 1)"),
    ("aspo", {"eps_low_high_entropy": 1}, "ASPO: eps_low_high_entropy = 1 is not allowed; expected a number in [0, 1)"),
    ("sapo", {"tau_pos": 0}, "SAPO: tau_pos = 0 is not allowed; expected a number in (0, inf)"),
    ("sapo_unilateral", {"tau_neg": -1}, "SAPOUnilateral: tau_neg = -1 is not allowed; expected a number in (0, inf)"),
    ("dac", {"eps_low": 1.5}, "DAC: eps_low = 1.5 is not allowed; expected a number in [0, 1)"),
    ("dac", {"eps_high": "0.2"}, "DAC: eps_high = '0.2' is not allowed; expected a number in [0, inf)"),
    ("dac", {"dual_clip": 0.9}, "DAC: dual_clip = 0.9 is not allowed; expected a number in (1, inf]"),
    ("bapo", {"target_ratio": 0}, "BAPO: target_ratio = 0 is not allowed; expected a number in (0, inf]"),
    ("bapo", {"c_low_start": 0}, "BAPO: c_low_start = 0 is not allowed; expected a number in (0, c_low_max]"),
    ("bapo", {"c_low_max": 0.5}, "c_low_start = 0.6 is not allowed; expected a number in (0, c_low_max] = (0, 0.5]"),
    ("bapo", {"c_low_step": 0}, "BAPO: c_low_step = 0 is not allowed; expected a number in (0, inf)"),
    ("bapo", {"c_high_start": 0.9}, "BAPO: c_high_start = 0.9 is not allowed; expected a number in [1, c_high_max]"),
    ("bapo", {"c_high_max": 1.1}, "c_high_start = 1.2 is not allowed; expected a number in [1, c_high_max] = [1, 1.1]"),
    ("bapo", {"c_high_step": -1}, "BAPO: c_high_step = -1 is not allowed; expected a number in (0, inf)"),
    ("bapo", {"c_low": 0.7}, "BAPO: c_low = 0.7 and c_high = None; expected both or neither"),
    ("bapo", {"c_low": 1.1, "c_high": 2}, "BAPO: c_low = 1.1 is not allowed; expected a number in (0, 1]"),
    ("bapo_algorithm1", {"rho0": 1}, "BAPOAlgorithm1: rho0 = 1 is not allowed; expected a number in (0, 1)"),
    ("gspo", {"eps_low": 1}, "GSPO: eps_low = 1 is not allowed; expected a number in [0, 1)"),
    ("gspo", {"eps_high": math.nan}, "GSPO: eps_high = nan is not allowed; expected a number in [0, inf)"),
    ("gmpo", {"log_clip_low": -0.4}, "GMPO: log_clip_low = -0.4 is not allowed; expected a number in [0, inf]"),
    ("gmpo", {"log_clip_high": True}, "GMPO: log_clip_high = True is not allowed; expected a number in [0, inf]"),
    ("vespo", {"k_pos": -1}, "VESPO: k_pos = -1 is not allowed; expected a number in [0, inf)"),
    ("vespo", {"lambda_neg": 0}, "VESPO: lambda_neg = 0 is not allowed; expected a number in (0, inf)"),
    ("dppo_tv", {"delta_low": 0}, "DPPOTV: delta_low = 0 is not allowed; expected a number in (0, inf]"),
    ("dppo_kl", {"delta_high": -1}, "DPPOKL: delta_high = -1 is not allowed; expected a number in (0, inf]"),
    ("dppo_kl", {"ratio_cap": 0.5}, "DPPOKL: ratio_cap = 0.5 is not allowed; expected a number in [1, inf]"),
    ("drpo", {"delta": 0}, "DRPO: delta = 0 is not allowed; expected a number in [1e-20, inf]"),
]


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED, ids=[f"{n}-{next(iter(f))}" for n, f, _ in REFUSED])
def test_a_refused_field_names_itself_its_value_and_its_range(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        objectives.make(name, **fields)
    assert message in str(error.value)


@pytest.mark.parametrize("name", [name for name in objectives.OBJECTIVES if name != "is"])
def test_no_field_takes_a_nan(name: str) -> None:
    """Not one: a NaN compares as neither too small nor too large."""
    for field, default in vars(objectives.make(name)).items():
        if isinstance(default, float | int):
            with pytest.raises(ValueError, match=f"{field} = nan is not allowed"):
                objectives.make(name, **{field: math.nan})
