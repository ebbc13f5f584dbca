"""GRPO: the clipped surrogate as it is printed, clip-higher, dual clip, refused fields."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import DUAL, EPS, Method, by_region, clipped
from torch import Tensor

from dgpo import TokenBatch, policy_loss
from dgpo.objectives import GRPO

METHODS = {
    "grpo": Method(
        closed_form=lambda x, q, sign, eps_low, eps_high, dual_clip: clipped(
            x, 1 - eps_low, 1 + eps_high, sign, dual_clip
        ),
        settings=[
            {"eps_high": 0.28},
            {"dual_clip": 3},
            {"eps_low": 0.3, "dual_clip": 1.1},
            {"eps_low": 0, "eps_high": 0},
        ],
        extreme=EPS + DUAL,
    ),
}

test_closed_form = by_region(METHODS)


GRID = [-19.9, -7.0, -0.5, -0.23, -0.21, 0.0, 0.17, 0.19, 0.24, 0.26, 1.0, 1.09, 1.1, 3.0, 19.9]
SETTINGS = [
    {},
    {"eps_high": 0.28},
    {"dual_clip": 3.0},
    {"dual_clip": 1.1},
    {"eps_low": 0.0, "eps_high": 0.0},
    {"eps_low": 0.5, "dual_clip": 10},
]


def tokens_at(x: list[float], advantage: float, dtype: torch.dtype = torch.float64) -> TokenBatch:
    log_ratio = torch.tensor([x], dtype=dtype)
    zeros = torch.zeros_like(log_ratio)
    return TokenBatch(log_ratio, zeros, torch.tensor([advantage]), torch.ones_like(zeros, dtype=torch.bool))


def surrogate(r: float, advantage: float, eps_low: float, eps_high: float, dual_clip: float | None) -> float:
    """PPO's clipped surrogate with the dual clip of arXiv 1912.09729, of one token."""
    clipped = min(r * advantage, min(max(r, 1 - eps_low), 1 + eps_high) * advantage)
    return max(clipped, dual_clip * advantage) if dual_clip is not None and advantage < 0 else clipped


def kept(r: float, advantage: float, eps_low: float, eps_high: float, dual_clip: float | None) -> float:
    if advantage < 0 and (r < 1 - eps_low or (dual_clip is not None and r > dual_clip)):
        return 0.0
    if advantage > 0 and r > 1 + eps_high:
        return 0.0
    return r


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
@pytest.mark.parametrize("advantage", [-1.3, 0.0, 0.4])
def test_weight_and_potential_by_region(fields: dict[str, float], advantage: float) -> None:
    objective, tokens = GRPO(**fields), tokens_at(GRID, advantage)
    settings: dict[str, Any] = {"eps_low": 0.2, "eps_high": 0.2, "dual_clip": None} | fields
    expected = [kept(math.exp(x), advantage, **settings) for x in GRID]
    assert objective.weight(tokens).squeeze(0).tolist() == pytest.approx(expected, rel=1e-14, abs=0)
    values = (objective.potential(tokens) * advantage).squeeze(0).tolist()
    assert values == pytest.approx([surrogate(math.exp(x), advantage, **settings) for x in GRID], rel=1e-13, abs=0)


@pytest.mark.parametrize("fields", SETTINGS, ids=str)
def test_loss_and_gradient_equal_autograd_through_the_clipped_surrogate(fields: dict[str, float]) -> None:
    """The detached-weight form against the loss as everybody writes it."""
    eps_low, eps_high = fields.get("eps_low", 0.2), fields.get("eps_high", 0.2)
    logprob = (torch.randn(6, 8, dtype=torch.float64) - 3).requires_grad_()
    old = (logprob + 0.6 * torch.randn(6, 8, dtype=torch.float64)).detach()
    advantage = torch.randn(6, 1, dtype=torch.float64).expand(6, 8)
    ratio = (logprob - old).exp()
    naive = torch.min(ratio * advantage, ratio.clamp(1 - eps_low, 1 + eps_high) * advantage)
    if "dual_clip" in fields:
        naive = torch.where(advantage < 0, torch.max(naive, fields["dual_clip"] * advantage), naive)
    expected = -naive.mean()
    (expected_gradient,) = torch.autograd.grad(expected, logprob)

    mask = torch.ones(6, 8, dtype=torch.bool)
    out = policy_loss(logprob, old, advantage, mask, objective=GRPO(**fields))
    (gradient,) = torch.autograd.grad(out.value, logprob)
    torch.testing.assert_close(out.value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=0)


def test_each_sign_of_the_advantage_is_clipped_on_its_own_side_only() -> None:
    weight = {sign: GRPO().weight(tokens_at([-1.0, 1.0], sign)).squeeze(0) for sign in (-1.0, 0.0, 1.0)}
    ratio = torch.tensor([-1.0, 1.0], dtype=torch.float64).exp()
    assert weight[-1.0].tolist() == [0.0, ratio[1].item()]
    assert weight[0.0].tolist() == ratio.tolist()
    assert weight[1.0].tolist() == [ratio[0].item(), 0.0]


def test_clip_higher_moves_the_upper_bound_only() -> None:
    x = [math.log(1.24), math.log(0.76)]
    assert GRPO(eps_high=0.28).weight(tokens_at(x, 1.0)).tolist()[0] == pytest.approx([1.24, 0.76])
    assert GRPO().weight(tokens_at(x, 1.0)).tolist()[0] == pytest.approx([0.0, 0.76])
    assert GRPO(eps_high=0.28).weight(tokens_at(x, -1.0)).tolist()[0] == pytest.approx([1.24, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_token_on_the_boundary_keeps_its_gradient(dtype: torch.dtype) -> None:
    edge: Tensor = GRPO().weight(tokens_at([math.log1p(0.2)], 1.0, dtype))
    assert edge.item() == pytest.approx(1.2, rel=1e-6)
    edge = GRPO().weight(tokens_at([math.log1p(-0.2)], -1.0, dtype))
    assert edge.item() == pytest.approx(0.8, rel=1e-6)


def test_an_infinite_dual_clip_is_none() -> None:
    tokens = tokens_at(GRID, -1.0)
    torch.testing.assert_close(GRPO(dual_clip=math.inf).weight(tokens), GRPO().weight(tokens), rtol=0, atol=0)
    torch.testing.assert_close(GRPO(dual_clip=math.inf).potential(tokens), GRPO().potential(tokens), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "bound"),
    [({}, math.inf), ({"dual_clip": 3}, 3.0), ({"dual_clip": 1.1}, 1.2), ({"dual_clip": 1.1, "eps_high": 0.05}, 1.1)],
    ids=str,
)
def test_the_claimed_upper_bound_is_approached(fields: dict[str, float], bound: float) -> None:
    x = torch.linspace(-19.9, 19.9, 200_001, dtype=torch.float64).tolist()
    assert GRPO(**fields).properties().upper_bound == bound
    largest = max(GRPO(**fields).weight(tokens_at(x, sign)).max().item() for sign in (-1.0, 1.0))
    assert largest == pytest.approx(min(bound, math.exp(19.9)), rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("eps_low", 1.5, "[0, 1)"),
        ("eps_low", 1, "[0, 1)"),
        ("eps_low", math.nan, "[0, 1)"),
        ("eps_high", -0.1, "[0, inf)"),
        ("eps_high", True, "[0, inf)"),
        ("dual_clip", 1, "(1, inf], or None"),
        ("dual_clip", -3.0, "(1, inf], or None"),
        ("dual_clip", "3", "(1, inf], or None"),
        ("dual_clip", math.nan, "(1, inf], or None"),
    ],
)
def test_a_refused_field_names_itself_its_value_and_its_range(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError) as error:
        GRPO(**{field: value})
    assert str(error.value) == f"GRPO: {field} = {value!r} is not allowed; expected a number in {allowed}"
