"""Stale updates on one token: against a step by hand, the closed forms, and what was published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stale import StaleToken, flow, power_flow, trajectory

from dgpo import TokenBatch, objectives
from dgpo.objectives import DGPO, GPPO, IS, OBJECTIVES

INF = math.inf


def test_the_token_starts_where_it_should() -> None:
    token = StaleToken(probability=0.017)
    z = token.logits()
    assert z.log_softmax(0)[0].exp().item() == pytest.approx(0.017, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    others = 1.5 * torch.randn(1000, generator=generator, dtype=torch.float64)
    assert torch.equal(z[1:], others[1:])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_one_update_is_a_step_along_the_weight(name: str, advantage: float) -> None:
    """The second one, where the ratio is no longer 1, by hand."""
    token = StaleToken(advantage=advantage, probability=0.2, vocabulary=12, learning_rate=0.3)
    objective, x = objectives.make(name), trajectory(objectives.make(name), token, 2)
    z = token.logits()
    old = z.log_softmax(0)[:1].view(1, 1)
    for k in range(2):
        tokens = TokenBatch(
            z.log_softmax(0)[:1].view(1, 1),
            old,
            torch.tensor([advantage], dtype=torch.float64),
            torch.ones(1, 1).bool(),
        )
        w = objective.calibrate(tokens).weight(tokens).item()
        chosen = objective.calibrate(tokens)
        pull = chosen.penalty(tokens).slope.item() if chosen.penalises else 0.0
        z = z + 0.3 * (advantage * w - pull) * (torch.eye(12).double()[0] - z.softmax(0))
        assert x[k + 1].item() == pytest.approx((z.log_softmax(0)[0] - old).item(), abs=1e-12)


@given(
    exponent=st.one_of(st.floats(-3, 4), st.sampled_from([0.0, 1.0])),
    bound=st.one_of(st.floats(0.3, 0.95), st.floats(1.05, 2.0)),
    scale=st.floats(0.1, 1.5),
)
def test_the_closed_form_solves_its_equation(exponent: float, bound: float, scale: float) -> None:
    """Against small steps of Runge and Kutta, inside and beyond the boundary, and while it is finite."""
    if abs(exponent) < 1e-3:
        exponent = 0.0
    sign = -1.0 if bound < 1 else 1.0
    blow_up = 1 / (abs(exponent) * scale * bound) if exponent else INF
    h = min(0.2, blow_up / 2) / 200

    def slope(x: float, beyond: bool) -> float:
        r = math.exp(x)
        return sign * (scale * bound * (r / bound) ** exponent if beyond else r)

    reached = sign * (1 - 1 / bound)
    start = math.log(bound)
    times = [reached]
    path = [start]
    for _ in range(200):
        x = path[-1]
        a = slope(x, True)
        b = slope(x + h / 2 * a, True)
        c = slope(x + h / 2 * b, True)
        d = slope(x + h * c, True)
        path.append(x + h / 6 * (a + 2 * b + 2 * c + d))
        times.append(times[-1] + h)
    found = power_flow(torch.tensor(times, dtype=torch.float64), bound=bound, exponent=exponent, scale=scale)
    torch.testing.assert_close(found, torch.tensor(path, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    within = torch.linspace(0, reached * 0.999, 9, dtype=torch.float64)
    torch.testing.assert_close(
        power_flow(within, bound=bound, exponent=exponent, scale=scale), -torch.log1p(-sign * within)
    )


def test_the_closed_forms_at_their_ends() -> None:
    late = torch.tensor([1e4, 1e6], dtype=torch.float64)
    hard = power_flow(late, bound=0.8, exponent=INF)
    assert hard.tolist() == pytest.approx([math.log(0.8)] * 2)
    assert power_flow(late, bound=1.2, exponent=-INF).tolist() == pytest.approx([math.log(1.2)] * 2)
    straight = power_flow(late, bound=0.8, exponent=0.0)
    assert (straight[1] - straight[0]).item() == pytest.approx(-0.8 * (1e6 - 1e4))
    for n in (1, 2, 3):
        logarithmic = power_flow(late, bound=0.8, exponent=n + 1.0)
        expected = -torch.log(1 + (n + 1) * late / 0.8**n) / (n + 1)
        torch.testing.assert_close(logarithmic, expected, rtol=1e-4, atol=0)
        assert (logarithmic[1] - logarithmic[0]).item() == pytest.approx(-math.log(100) / (n + 1), rel=1e-3)
    assert power_flow(late, bound=1.2, exponent=0.5).tolist() == [INF, INF], "a blow-up at a finite time"


@pytest.mark.parametrize(
    ("bound", "exponent", "scale", "message"),
    [
        (1.0, 0.0, 1.0, "not 1"),
        (0.0, 0.0, 1.0, "above 0"),
        (0.8, 0.0, -1.0, "scale = -1.0"),
        (0.8, -INF, 1.0, "a hard clip is inf there"),
        (1.2, INF, 1.0, "a hard clip is -inf there"),
        (1.2, math.nan, 1.0, "exponent = nan"),
    ],
)
def test_power_flow_says_what_it_was_given(bound: float, exponent: float, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_flow(torch.ones(1), bound=bound, exponent=exponent, scale=scale)


@pytest.mark.parametrize(
    ("objective", "exponent"), [(IS(), 1.0), (DGPO(n=1), 2.0), (DGPO(n=3), 4.0), (GPPO(), 0.0)], ids=lambda x: str(x)
)
def test_gradient_flow_in_its_own_time_is_the_closed_form(objective: objectives.Objective, exponent: float) -> None:
    found = flow(objective, StaleToken(vocabulary=50), 60)
    closed = power_flow(found.own_time, bound=0.8, exponent=exponent)
    torch.testing.assert_close(found.log_ratio, closed, rtol=0, atol=1e-5)


def test_gradient_flow_upwards_is_the_closed_form() -> None:
    found = flow(DGPO(m=2), StaleToken(advantage=1.0, probability=0.01, vocabulary=50), 20, substeps=16)
    closed = power_flow(found.own_time, bound=1.2, exponent=0.5)
    torch.testing.assert_close(found.log_ratio, closed, rtol=0, atol=1e-4)
    assert found.log_ratio[-1] > 3


def test_small_updates_follow_the_flow() -> None:
    """A tenth of the learning rate and ten times the updates: a tenth of the gap."""
    coarse, fine = StaleToken(vocabulary=50, learning_rate=0.2), StaleToken(vocabulary=50, learning_rate=0.02)
    target = flow(DGPO(), coarse, 20).log_ratio[-1].item()
    far = abs(trajectory(DGPO(), coarse, 20)[-1].item() - target)
    near = abs(trajectory(DGPO(), fine, 200)[-1].item() - target)
    assert near == pytest.approx(far / 10, rel=0.3)


def test_a_constant_speed_would_miss_the_straight_line() -> None:
    """The two numbers of the page: with the shares of the others held, a constant weight ends at -82, not at -112."""
    token, h, x = StaleToken(), 0.25, 0.0
    shares = token.logits()[1:].softmax(0).square().sum().item()
    for _ in range(4096):
        r = token.probability * math.exp(x)
        middle = x - h / 2 * 0.1 * (1 - r) ** 2 * (1 + shares) * max(math.exp(x), 0.8)
        x -= h * 0.1 * (1 - token.probability * math.exp(middle)) ** 2 * (1 + shares) * max(math.exp(middle), 0.8)
    assert round(x) == -82


@pytest.mark.parametrize(
    "fields",
    [{"advantage": 0.0}, {"probability": 0.0}, {"probability": 1.0}, {"learning_rate": 0.0}, {"vocabulary": 1}],
    ids=str,
)
def test_a_token_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"StaleToken: {next(iter(fields))} = "):
        StaleToken(**fields)


def test_steps_and_substeps_are_checked() -> None:
    with pytest.raises(ValueError, match="steps = 0"):
        trajectory(IS(), StaleToken(), 0)
    with pytest.raises(ValueError, match="substeps = 0"):
        flow(IS(), StaleToken(), 1, substeps=0)
