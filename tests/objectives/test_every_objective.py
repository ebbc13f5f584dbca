"""One suite over every registered method: what the contract promises, and what each method claims about itself.

A method added to the registry is tested here with its defaults, without an edit; settings worth testing beside the
defaults go into `VARIANTS`.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo import TokenBatch, aggregation, objectives, policy_loss
from dgpo.correction import Truncate
from dgpo.objectives import OBJECTIVES, Objective, Read

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dgpo": [
        {"n": 0, "m": math.inf},
        {"n": 2, "m": 1},
        {"n": 3, "m": 3, "eps_low": 0.1, "eps_high": 0.28},
        {"n": 0.5, "m": 1.5},
        {"n": math.inf, "m": math.inf},
        {"eps_low": 0, "eps_high": 0},
        {"reverse_cap": 3, "right_cap": 5},
        {"m": 1, "reverse_cap": 1.5},
    ],
    "grpo": [
        {"eps_high": 0.28},
        {"dual_clip": 3},
        {"eps_low": 0.3, "dual_clip": 1.1},
        {"eps_low": 0, "eps_high": 0},
    ],
    "maspo": [
        {"alpha": 0.5},
        {"alpha": 0, "sigma_base": 0.5},
        {"sigma_high": math.inf, "adv_low": 0, "adv_high": math.inf},
        {"beta_pos": 0.3, "beta_neg": 0.3},
    ],
    "cispo": [{"cap": 1}, {"cap": 1.2}, {"cap": math.inf}],
    "cispo_two_sided": [{"eps_high": 4, "eps_low": 1}, {"eps_low": 0, "eps_high": 0}],
    "gppo": [{"eps_high": 0.28, "dual_clip": 10}, {"eps_low": 0, "eps_high": 0}],
    "ce_gppo": [
        {"beta1": 1, "beta2": 1},
        {"beta1": 0, "beta2": 0},
        {"beta1": 0.5, "beta2": 2, "dual_clip": 1.5},
        {"beta1": 3, "eps_low": 0},
    ],
    "aspo": [
        {"entropy_quantile": 0.8},
        {"dual_clip_pos": math.inf, "dual_clip_neg": math.inf},
        {"dual_clip_pos": 1.5, "dual_clip_neg": 2, "eps_low": 0.1, "eps_high": 0.28},
    ],
    "sapo": [{"tau_pos": 5, "tau_neg": 0.1}],
    "sapo_unilateral": [{"tau_pos": 5, "tau_neg": 0.1}],
    "dac": [{"dual_clip": 10}, {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 3}, {"eps_low": 0, "eps_high": 0}],
    "bapo": [{"c_low": 0.7, "c_high": 1.3, "dual_clip": 3}, {"target_ratio": 0.5}, {"target_ratio": 5}],
    "bapo_algorithm1": [{"c_low": 1, "c_high": 1}, {"rho0": 0.9, "dual_clip": 3}],
    "gspo": [{"eps_low": 0.2, "eps_high": 0.28}, {"eps_low": 0, "eps_high": 0}],
    "gmpo": [
        {"log_clip_low": 0, "log_clip_high": 0.1},
        {"log_clip_low": 1, "log_clip_high": math.inf},
        {"log_clip_low": math.inf, "log_clip_high": math.inf},
    ],
    "vespo": [{"k_pos": 1.5, "lambda_neg": 2.5}, {"k_pos": 0, "k_neg": 0}],
    "dppo_tv": [{"delta_low": 1, "delta_high": 1}, {"delta_low": 0.1, "ratio_cap": math.inf}, {"ratio_cap": 1}],
    "dppo_kl": [
        {"delta_low": math.inf, "delta_high": math.inf},
        {"delta_low": 0.01, "delta_high": 0.2, "ratio_cap": 1e4},
        {"ratio_cap": 1},
    ],
    "drpo": [{"delta": 0.3}, {"delta": math.inf}],
}
CASES = [(name, fields) for name in OBJECTIVES for fields in [{}, *VARIANTS.get(name, [])]]
HALF = math.log(0.5)
"""log π_old of the properties that hold π_old fixed."""
RARE = -20.1
"""log π_old of a token whose ratio can go from e^-20 to e^20 with π <= 1."""

every_case = pytest.mark.parametrize(
    ("name", "fields"),
    CASES,
    ids=[f"{name}({', '.join(f'{k}={v}' for k, v in fields.items())})" for name, fields in CASES],
)
every_name = pytest.mark.parametrize("name", OBJECTIVES)
both_signs = pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["A<0", "A>0"])


def column(x: Tensor, sign: float | Tensor, old: float | Tensor = HALF) -> TokenBatch:
    """One response of one token for each log ratio in x [N], so that sequence-level methods see the same ratios."""
    old_logprob = torch.zeros_like(x) + old
    advantage = torch.zeros_like(x) + sign
    return TokenBatch(
        (old_logprob + x).unsqueeze(1),
        old_logprob.unsqueeze(1),
        advantage,
        torch.ones(len(x), 1, dtype=torch.bool),
        entropy=torch.ones_like(x).unsqueeze(1),
    )


def made(name: str, fields: dict[str, Any]) -> Objective:
    """The objective as the loss would use it; an adaptive one is calibrated once and then holds still."""
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)
    return objectives.make(name, **fields).calibrate(column(x, torch.sign(x)))


def linspace(low: float, high: float, number: int) -> Tensor:
    return torch.linspace(low, high, number, dtype=torch.float64)


# --- the contract of the class ----------------------------------------------------------------------------------------


@every_case
def test_is_a_frozen_keyword_only_value(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.eps_low = 0.5  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(objective))
    twin = objectives.make(name, **fields)
    assert (objective, hash(objective)) == (twin, hash(twin))
    assert isinstance(objective, OBJECTIVES[name])


@every_case
def test_make_round_trips_asdict(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    assert objectives.make(name, **dataclasses.asdict(objective)) == objective
    assert {key: getattr(objective, key) for key in fields} == fields


@every_case
def test_survives_pickle_and_yaml(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    assert pickle.loads(pickle.dumps(objective)) == objective
    yaml = pytest.importorskip("yaml", reason="needs pyyaml: the extra train")
    text = yaml.safe_dump(dataclasses.asdict(objective))
    assert objectives.make(name, **yaml.safe_load(text)) == objective


@every_name
def test_declares_its_properties(name: str) -> None:
    """The base class claims nothing, so a method that forgot to declare its own must not get into the registry."""
    assert OBJECTIVES[name].properties is not Objective.properties


@every_name
def test_an_unknown_field_names_the_nearest_one(name: str) -> None:
    known = [field.name for field in dataclasses.fields(OBJECTIVES[name])]
    misspelt = max(known, key=len) + max(known, key=len)[-1] if known else "anything"
    with pytest.raises(ValueError, match=f"objective '{name}' has no field '{misspelt}'") as error:
        objectives.make(name, **{misspelt: 1})
    assert (f"did you mean {max(known, key=len)!r}?" if known else "its fields: none") in str(error.value)


@every_name
def test_documents_its_formula_and_its_source(name: str) -> None:
    text = OBJECTIVES[name].__doc__ or ""
    assert "w = " in text
    assert "arXiv" in text or "Source" in text


@every_case
def test_a_method_that_does_not_adapt_is_its_own_calibration(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    objective = objectives.make(name, **fields)
    calibrated = objective.calibrate(make_batch().tokens())
    assert (calibrated is objective) == ("batch" not in objective.reads)
    assert calibrated.calibrate(make_batch(seed=1).tokens()) is calibrated


@every_case
def test_calibration_is_deterministic_and_keeps_no_state(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    objective = objectives.make(name, **fields)
    before = dataclasses.asdict(objective)
    first = objective.calibrate(make_batch(seed=1).tokens())
    objective.calibrate(make_batch(seed=2).tokens())
    assert objective.calibrate(make_batch(seed=1).tokens()) == first
    assert objectives.make(name, **fields).calibrate(make_batch(seed=1).tokens()) == first
    assert dataclasses.asdict(objective) == before


# --- the weight -------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_weight_is_detached_and_has_the_dtype_of_the_arithmetic(
    name: str, fields: dict[str, Any], given_dtype: torch.dtype, computed: torch.dtype, make_batch: Callable[..., Any]
) -> None:
    batch = make_batch(dtype=given_dtype)
    batch.logprob.requires_grad_()
    objective = made(name, fields)
    weight = objective.weight(batch.tokens())
    assert (weight.shape, weight.dtype, weight.requires_grad) == (batch.mask.shape, computed, False)
    same = dataclasses.replace(batch, logprob=batch.logprob.detach().to(computed)).tokens()
    torch.testing.assert_close(weight, objective.weight(same), rtol=0, atol=0)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weight_potential_and_gradient_are_finite_far_from_the_policy(
    name: str, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    """Log ratios in [-700, 700], one response of one token each, and all of them in one response."""
    objective = made(name, fields)
    for old, highest in ((-701.0, 700), (-1e-3, 0)):
        x = linspace(-700, highest, 281)
        logprob = (old + x).to(dtype)
        for sign in (-1.0, 0.0, 1.0):
            for shape in ((-1, 1), (1, -1)):
                asked = logprob.reshape(shape).clone().requires_grad_()
                given_old, advantage = torch.full_like(asked, old), torch.full_like(asked, sign)
                mask, entropy = torch.ones_like(asked, dtype=torch.bool), torch.ones_like(asked)
                tokens = TokenBatch(asked, given_old, advantage, mask, entropy=entropy)
                assert objective.weight(tokens).isfinite().all()
                assert objective.potential(tokens).isfinite().all()
                out = policy_loss(asked, given_old, advantage, mask, objective=objective, entropy=entropy)
                (gradient,) = torch.autograd.grad(out.value, asked)
                assert out.value.isfinite()
                # 16 bits of gradient may not hold e^20; their overflow is the caller's dtype, not the weight's
                assert gradient.isfinite().all() or (dtype == torch.float16 and not gradient.isnan().any())
                assert all(figure.isfinite() for figure in out.statistics.values())


@every_case
def test_padding_does_not_reach_a_weight(name: str, fields: dict[str, Any], make_batch: Callable[..., Any]) -> None:
    objective, batch = made(name, fields), make_batch()

    def padded(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, 3, 0, 2), value=fill)

    advantage = batch.advantage.unsqueeze(1).expand(batch.mask.shape)
    wide = TokenBatch(
        padded(batch.logprob, math.nan),
        padded(batch.old_logprob, -math.inf),
        padded(advantage, 7.0),
        padded(batch.mask, False),
        entropy=padded(batch.entropy, math.nan),
    )
    B, T = batch.mask.shape
    weight = objective.weight(batch.tokens())
    exact = 0 if objective.level == "token" else 1e-14  # a sum over more positions rounds in another order
    torch.testing.assert_close(objective.weight(wide)[:B, :T][batch.mask], weight[batch.mask], rtol=exact, atol=0)
    loss = policy_loss(
        batch.logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective, entropy=batch.entropy
    )
    wide_loss = policy_loss(
        wide.logprob, wide.old_logprob, wide.advantage, wide.mask, objective=objective, entropy=wide.entropy
    )
    torch.testing.assert_close(wide_loss.value, loss.value, rtol=1e-13, atol=1e-15)


@every_case
def test_rows_may_come_in_any_order(name: str, fields: dict[str, Any], make_batch: Callable[..., Any]) -> None:
    objective, batch = made(name, fields), make_batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = dataclasses.replace(
        batch, **{field.name: getattr(batch, field.name)[order] for field in dataclasses.fields(batch)}
    )
    torch.testing.assert_close(
        objective.weight(shuffled.tokens()), objective.weight(batch.tokens())[order], rtol=0, atol=0
    )


# --- what a method claims ---------------------------------------------------------------------------------------------


@every_case
def test_claim_on_policy_weight_is_one(name: str, fields: dict[str, Any]) -> None:
    objective = made(name, fields)
    on_policy = torch.zeros(4, dtype=torch.float64)
    old = torch.tensor([-1e-3, -0.7, -5.0, -18.0], dtype=torch.float64)
    weights = torch.stack([objective.weight(column(on_policy, sign, old)) for sign in (-2.0, -0.3, 0.3, 2.0)])
    assert bool(torch.isclose(weights, torch.ones_like(weights), rtol=1e-12).all()) == (
        objective.properties().unit_on_policy
    )


def largest_jump(objective: Objective, sign: float, old: float, highest: float) -> float:
    """Bisect the steepest steps of w on a fine grid down to the resolution of floats: what is left is a jump.

    Measured as w / (r + |w|), so that growth with the ratio is not mistaken for a jump.
    """

    def measured(x: Tensor) -> Tensor:
        weight = objective.weight(column(x, sign, old)).squeeze(1)
        return weight / (x.exp() + weight.abs())

    grid = linspace(-20, highest, 40001)
    steepest = measured(grid).diff().abs().topk(200).indices
    low, high = grid[steepest], grid[steepest + 1]
    for _ in range(36):
        middle = (low + high) / 2
        at_low, at_middle, at_high = measured(low), measured(middle), measured(high)
        in_first_half = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
        low, high = torch.where(in_first_half, low, middle), torch.where(in_first_half, middle, high)
    return (measured(high) - measured(low)).abs().max().item()


@every_case
def test_claim_continuity(name: str, fields: dict[str, Any]) -> None:
    """A continuous weight has no jump for either sign of A; one that is said to jump really does."""
    objective = made(name, fields)
    ranges = [(HALF, -HALF), (RARE, 20.0)]
    jump = max(largest_jump(objective, sign, old, highest) for sign in (-1.0, 1.0) for old, highest in ranges)
    if objective.properties().continuous:
        assert jump < 1e-9
    else:
        assert jump > 1e-3


log_ratios = st.floats(-300, 300) | st.floats(-2, 2)
advantages = st.floats(0.001, 6) | st.floats(-6, -0.001)
old_logprobs = st.floats(-20, -0.001)


@every_case
@given(drawn=st.lists(st.tuples(log_ratios, advantages, old_logprobs), min_size=1, max_size=8))
def test_claim_upper_bound_and_sign(name: str, fields: dict[str, Any], drawn: list[tuple[float, float, float]]) -> None:
    objective = made(name, fields)
    x, advantage, old = torch.tensor(drawn, dtype=torch.float64).unbind(1)
    weight = objective.weight(column(x, advantage, torch.minimum(old, -x)))
    claims = objective.properties()
    assert weight.isfinite().all()
    assert (weight <= claims.upper_bound * (1 + 1e-12)).all()
    assert not claims.nonnegative or (weight >= 0).all()


@every_case
def test_claim_of_no_upper_bound_is_needed(name: str, fields: dict[str, Any]) -> None:
    """Where a method claims no bound, its weight does grow until the clamp of the log ratio stops it."""
    objective = made(name, fields)
    largest = max(
        objective.weight(column(linspace(-20, min(-old, 20), 4001), sign, old)).max().item()
        for sign in (-1.0, 1.0)
        for old in (-1e-3, HALF, -6.0, RARE)
    )
    assert math.isinf(objective.properties().upper_bound) == (largest > 1e4)


@every_case
@both_signs
def test_claim_limit_of_the_weight_on_the_probability(name: str, fields: dict[str, Any], sign: float) -> None:
    """w/π as π -> 0 with π_old = 1/2 fixed: how the share of the importance ratio that is kept goes with the ratio."""
    objective = made(name, fields)
    claims = objective.properties()
    claimed = claims.limit_negative if sign < 0 else claims.limit_positive
    if objective.level == "sequence":
        assert claimed is None
        return
    x = torch.tensor([-12.0, -16.0, -19.9], dtype=torch.float64)
    kept = objective.weight(column(x, sign)).squeeze(1) / x.exp()
    if kept[-1] == 0:
        found = "zero"
    else:
        before, power = (kept.abs().log().diff() / x.diff()).tolist()  # kept ~ r^power
        assert power == pytest.approx(before, abs=1e-3)
        found = "finite" if abs(power) < 1e-3 else ("zero" if power > 0 else "infinite")
    assert found == claimed
    if found == "finite" and claims.nonnegative:
        assert 0 < kept[-1] < math.inf


# --- the potential ----------------------------------------------------------------------------------------------------


def declares_a_potential(objective: Objective) -> bool:
    return type(objective).potential is not Objective.potential


def slope_of_potential(objective: Objective, tokens: TokenBatch) -> Tensor:
    """d Σφ / d logprob, over the valid tokens."""
    logprob = tokens.logprob.detach().requires_grad_()
    again = TokenBatch(logprob, tokens.old_logprob, tokens.advantage, tokens.mask, entropy=tokens.entropy)
    total = torch.where(tokens.mask, objective.potential(again), 0.0).sum()
    return torch.autograd.grad(total, logprob)[0]


@every_case
def test_weight_is_the_derivative_of_a_declared_potential(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    """dφ/dlogprob = w for |log ratio| < 20; without a declared potential the value shows w itself."""
    objective = made(name, fields)
    columns = [column(linspace(-19.97, 19.94, 801), sign, RARE) for sign in (-1.3, 1.3)]
    for tokens in [*columns, make_batch().tokens(), make_batch(B=8, T=6, spread=1.5, seed=3).tokens()]:
        weight = objective.weight(tokens)
        if declares_a_potential(objective):
            slope = slope_of_potential(objective, tokens)
            torch.testing.assert_close(slope[tokens.mask], weight[tokens.mask], rtol=1e-9, atol=1e-12)
        else:
            torch.testing.assert_close(objective.potential(tokens), weight, rtol=0, atol=0)


@every_case
@both_signs
def test_potential_passes_gradcheck_away_from_jumps(name: str, fields: dict[str, Any], sign: float) -> None:
    """Finite differences of φ, so that a mistake shared by the weight and autograd's path would show."""
    objective = made(name, fields)
    x = linspace(-2.93, 2.88, 40)
    before, after = (objective.weight(column(x + shift, sign, -3.0)).squeeze(1) for shift in (-1e-3, 1e-3))
    x = x[(after - before).abs() < 0.05 * (1 + before.abs())]
    assert len(x) >= 36
    tokens = column(x, sign, -3.0)

    def shown(logprob: Tensor) -> Tensor:
        batch = TokenBatch(logprob, tokens.old_logprob, tokens.advantage, tokens.mask, entropy=tokens.entropy)
        return objective.potential(batch)

    if declares_a_potential(objective):
        assert torch.autograd.gradcheck(shown, tokens.logprob.clone().requires_grad_(), atol=1e-5, rtol=1e-5)
    else:
        assert not shown(tokens.logprob.clone().requires_grad_()).requires_grad


@every_case
def test_potential_of_whole_responses_passes_gradcheck(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    """Σφ over a ragged batch with one advantage per response, so that sequence level is looked at as a whole."""
    objective = made(name, fields)
    if not declares_a_potential(objective):
        return
    found = 0
    for seed in range(40):
        batch = make_batch(B=4, T=5, spread=0.3, seed=seed)
        shifted = [dataclasses.replace(batch, logprob=batch.logprob + shift).tokens() for shift in (-1e-4, 1e-4)]
        before, after = (objective.weight(tokens) for tokens in shifted)
        if ((after - before).abs() > 0.01 * (1 + before.abs())).any():
            continue  # a branch point is near
        found += 1

        def total(logprob: Tensor, batch: Any = batch) -> Tensor:
            tokens = TokenBatch(logprob, batch.old_logprob, batch.advantage, batch.mask, entropy=batch.entropy)
            return torch.where(batch.mask, objective.potential(tokens), 0.0).sum()

        logprob = batch.logprob.clone().requires_grad_()
        assert torch.autograd.gradcheck(total, logprob, eps=1e-6, atol=1e-6, rtol=1e-5)

        def value(logprob: Tensor, batch: Any = batch) -> Tensor:
            out = policy_loss(
                logprob, batch.old_logprob, batch.advantage, batch.mask, objective=objective, entropy=batch.entropy
            )
            return out.value

        # the logged value is a true objective where there is a potential, so its own differences are the gradient
        assert torch.autograd.gradcheck(value, logprob, eps=1e-6, atol=1e-6, rtol=1e-5)
        (slope,) = torch.autograd.grad(total(logprob), logprob)
        weight = torch.where(batch.mask, objective.weight(batch.tokens()), 0.0)
        torch.testing.assert_close(slope, weight, rtol=1e-10, atol=1e-12)
        if found == 3:
            break
    assert found == 3


# --- the loss ---------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("how", aggregation.AGGREGATIONS)
def test_gradient_of_the_loss_is_the_product_of_the_four_factors(
    name: str, fields: dict[str, Any], how: str, make_batch: Callable[..., Any]
) -> None:
    batch = make_batch(B=6, T=9, spread=1.0, seed=5)
    objective = objectives.make(name, **fields)
    summed = aggregation.make(how, **({"length": 11} if how == "seq-mean-token-sum-norm" else {}))
    batch.logprob.requires_grad_()
    out = policy_loss(
        batch.logprob,
        batch.old_logprob,
        batch.advantage,
        batch.mask,
        objective=objective,
        aggregation=summed,
        rollout_logprob=batch.rollout_logprob,
        correction=Truncate(cap=1.2),
        entropy=batch.entropy,
    )
    (gradient,) = torch.autograd.grad(out.value, batch.logprob)

    tokens = batch.tokens()
    c = summed.coefficient(batch.mask, aggregation.StepTotals.of(batch.mask), torch.float64)
    rho = (batch.old_logprob - batch.rollout_logprob).exp().clamp(max=1.2)
    weight = torch.where(batch.mask, objective.calibrate(tokens).weight(tokens), 0.0)
    torch.testing.assert_close(out.weight, weight, rtol=0, atol=0)
    torch.testing.assert_close(gradient, -c * rho * batch.advantage.unsqueeze(1) * weight, rtol=1e-13, atol=0)
    phi = torch.where(batch.mask, objective.calibrate(tokens).potential(tokens), 0.0)
    expected = -(c * rho * batch.advantage.unsqueeze(1) * phi).sum()
    torch.testing.assert_close(out.value, expected, rtol=1e-12, atol=1e-15)


@every_case
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30], ids=str)
def test_masked_positions_contribute_exactly_nothing(
    name: str, fields: dict[str, Any], junk: float, make_batch: Callable[..., Any]
) -> None:
    batch = make_batch()
    advantage = batch.advantage.unsqueeze(1).expand(batch.mask.shape)

    def loss(fill: float) -> tuple[Any, Tensor, Tensor]:
        def filled(values: Tensor) -> Tensor:
            return torch.where(batch.mask, values, fill)

        logprob, entropy = filled(batch.logprob).requires_grad_(), filled(batch.entropy).requires_grad_()
        out = policy_loss(
            logprob,
            filled(batch.old_logprob),
            filled(advantage),
            batch.mask,
            objective=objectives.make(name, **fields),
            rollout_logprob=filled(batch.rollout_logprob),
            correction=Truncate(level="sequence"),
            entropy=entropy,
            ref_logprob=filled(batch.ref_logprob),
            kl_coef=0.1,
            entropy_coef=0.01,
        )
        return out, *torch.autograd.grad(out.value, (logprob, entropy))

    clean, junked = loss(-1.0), loss(junk)
    assert junked[0].value == clean[0].value
    for gradient, expected in zip(junked[1:], clean[1:], strict=True):
        assert (gradient[~batch.mask] == 0).all()
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
    assert (junked[0].weight[~batch.mask] == 0).all()
    assert junked[0].statistics == clean[0].statistics


@every_case
def test_an_advantage_of_zero_contributes_exactly_nothing(
    name: str, fields: dict[str, Any], make_batch: Callable[..., Any]
) -> None:
    """Whatever the ratio of the token, and although it counts in the normaliser."""
    batch = make_batch()
    advantage = batch.advantage.unsqueeze(1).repeat(1, batch.mask.shape[1])
    idle = torch.rand(batch.mask.shape) < 0.4
    advantage[idle] = 0.0
    objective = made(name, fields)

    def loss(x: float) -> tuple[Tensor, Tensor]:
        logprob = torch.where(idle, batch.old_logprob + x, batch.logprob).requires_grad_()
        value = policy_loss(
            logprob, batch.old_logprob, advantage, batch.mask, objective=objective, entropy=batch.entropy
        ).value
        return value.detach(), torch.autograd.grad(value, logprob)[0]

    value, gradient = loss(0.0)
    for x in (-250.0, -1.0, 1.0, 250.0):
        far_value, far_gradient = loss(x)
        assert (far_gradient[advantage == 0] == 0).all()
        if objective.level == "token":
            assert far_value == value
            torch.testing.assert_close(far_gradient, gradient, rtol=0, atol=0)


@every_name
def test_the_loss_and_its_statistics_need_no_host_synchronisation(name: str) -> None:
    """On the meta device there are no values, so anything that reads one on the host raises."""
    if "batch" in OBJECTIVES[name]().reads:
        return  # allowed one documented synchronisation
    logprob = torch.zeros(3, 4, device="meta", requires_grad=True)
    other, mask = torch.zeros(3, 4, device="meta"), torch.ones(3, 4, device="meta", dtype=torch.bool)
    out = policy_loss(
        logprob,
        other,
        other,
        mask,
        objective=name,
        rollout_logprob=other,
        correction=Truncate(),
        entropy=other,
        ref_logprob=other,
        kl_coef=0.1,
        entropy_coef=0.1,
    )
    out.value.backward()
    assert logprob.grad is not None
    assert {figure.device.type for figure in out.statistics.values()} == {"meta"}
    assert {figure.dim() for figure in out.statistics.values()} == {0}


# --- what a weight reads ----------------------------------------------------------------------------------------------


def dyadic(generator: torch.Generator, low: float, high: float, shape: tuple[int, int] = (6, 8)) -> Tensor:
    """Random numbers whose sums are exact, so that the log ratio is the same at every π_old."""
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low).mul(1024).round() / 1024


@dataclasses.dataclass(frozen=True)
class Parts:
    """A batch by what a weight may read, so that one of them can be changed alone."""

    ratio: Tensor
    sign: Tensor
    size: Tensor
    old_logprob: Tensor
    entropy: Tensor
    mask: Tensor

    @classmethod
    def random(cls, seed: int) -> Parts:
        g = torch.Generator().manual_seed(seed)
        return cls(
            ratio=dyadic(g, -1.5, 1.5),
            sign=dyadic(g, -1, 1).sign(),
            size=dyadic(g, 0.25, 3),
            old_logprob=dyadic(g, -4, -0.125),
            entropy=dyadic(g, 0, 3),
            mask=torch.rand(6, 8, generator=g) < 0.8,
        )

    def tokens(self, *, entropy: bool = True) -> TokenBatch:
        old, advantage = self.old_logprob, self.sign * self.size
        return TokenBatch(old + self.ratio, old, advantage, self.mask, entropy=self.entropy if entropy else None)

    def but(self, other: Parts, where: Tensor) -> Parts:
        """With everything from the other batch at the places of a mask."""
        names = [field.name for field in dataclasses.fields(self)]
        return Parts(**{name: torch.where(where, getattr(other, name), getattr(self, name)) for name in names})


PARTS = {
    "ratio": "ratio",
    "advantage_sign": "sign",
    "advantage_size": "size",
    "old_logprob": "old_logprob",
    "entropy": "entropy",
}


def changes(objective: Objective, read: Read, seed: int) -> bool:
    """Whether a weight changes, bit for bit, with nothing but this."""
    one, other = Parts.random(2 * seed), Parts.random(2 * seed + 1)
    if read == "batch":
        kept = (torch.arange(len(one.mask)) % 2 == 0).unsqueeze(1).expand_as(one.mask)
        changed = one.but(other, ~kept)
        calibrated = objective.calibrate(changed.tokens())
    else:
        kept = torch.zeros_like(one.mask)
        kept[:, 3] = True
        one = dataclasses.replace(one, mask=one.mask | kept)
        calibrated = objective.calibrate(one.tokens())
        if read == "response":
            changed = one.but(other, ~kept)
        else:
            kept = one.mask
            changed = dataclasses.replace(one, **{PARTS[read]: getattr(other, PARTS[read])})
    before = objective.calibrate(one.tokens()).weight(one.tokens())
    after = calibrated.weight(changed.tokens())
    return not torch.equal(before[kept & one.mask], after[kept & one.mask])


@every_case
def test_what_a_weight_does_not_declare_does_not_change_it(name: str, fields: dict[str, Any]) -> None:
    objective = objectives.make(name, **fields)
    undeclared = [read for read in get_args(Read) if read not in objective.reads]
    assert [read for read in undeclared if any(changes(objective, read, seed) for seed in range(3))] == []


@every_name
def test_what_a_method_declares_changes_its_weight(name: str) -> None:
    """With some of the fields that it is declared for: at their limits (an infinite trust region), it may not."""
    cases = [objectives.make(name, **fields) for fields in [{}, *VARIANTS.get(name, [])]]
    for read in sorted(set().union(*(case.reads for case in cases))):
        declared = [case for case in cases if read in case.reads]
        assert any(changes(case, read, seed) for case in declared for seed in range(30)), read


def test_reads_depends_on_the_fields() -> None:
    assert "advantage_size" in objectives.make("maspo").reads
    assert "advantage_size" not in objectives.make("maspo", beta_pos=0.0, beta_neg=0.0).reads
    assert "batch" not in objectives.make("bapo", c_low=0.7, c_high=1.3).reads
    assert {name for name, cls in OBJECTIVES.items() if "entropy" in cls().reads} == set()


@every_case
def test_entropy_is_needed_where_it_is_declared_and_nowhere_else(name: str, fields: dict[str, Any]) -> None:
    objective, tokens = objectives.make(name, **fields), Parts.random(0).tokens(entropy=False)
    calibrated = objective.calibrate(tokens)
    if "entropy" not in objective.reads:
        calibrated.weight(tokens)
        calibrated.boundaries(tokens)
        return
    for method in (calibrated.weight, calibrated.boundaries):
        with pytest.raises(ValueError, match=r"needs entropy \[B, T\], got None"):
            method(tokens)
