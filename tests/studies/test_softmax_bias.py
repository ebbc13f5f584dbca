"""The exact laboratory: moments of an estimate against brute force and against gradients of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from softmax_bias import drifted, estimator, moments
from torch import Tensor

from dgpo import TokenBatch, objectives, policy_loss
from dgpo.objectives import DGPO, GRPO, IS, OBJECTIVES


def problem(V: int = 7, S: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old, step = (torch.randn(S, V, generator=generator, dtype=torch.float64) for _ in range(2))
    advantage = torch.randn(S, V, generator=generator, dtype=torch.float64)
    return old, old + step, advantage


@pytest.mark.parametrize("name", OBJECTIVES)
def test_moments_are_those_of_the_gradients_of_policy_loss(name: str) -> None:
    """Every token of the vocabulary once, through autograd, and summed with its probability."""
    old, new, advantage = problem()
    objective = objectives.make(name)
    found = moments(objective, old, new, advantage)
    for s in range(len(old)):
        q = old[s].softmax(0)
        if "batch" in objective.reads:
            counted = TokenBatch(
                new[s].log_softmax(0).unsqueeze(1),
                old[s].log_softmax(0).unsqueeze(1),
                q * advantage[s],
                torch.ones(len(q), 1, dtype=torch.bool),
            )
            calibrated = objective.calibrate(counted)
        else:
            calibrated = objective
        gradients = []
        for a in range(len(q)):
            z = new[s].clone().requires_grad_()
            loss = policy_loss(
                z.log_softmax(0)[a].view(1, 1),
                old[s].log_softmax(0)[a].view(1, 1),
                advantage[s, a : a + 1],
                torch.ones(1, 1, dtype=torch.bool),
                calibrated,
            )
            gradients.append(-torch.autograd.grad(loss.value, z)[0])
        g = torch.stack(gradients)
        mean = q @ g
        torch.testing.assert_close(found.mean[s], mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.variance[s], q @ (g - mean).square().sum(1), rtol=1e-10, atol=1e-12)


def test_the_reference_is_the_true_gradient_and_importance_sampling_has_no_bias() -> None:
    old, new, advantage = problem()
    found = moments(IS(), old, new, advantage)
    z = new.clone().requires_grad_()
    (true,) = torch.autograd.grad((z.softmax(-1) * advantage).sum(), z)
    torch.testing.assert_close(found.gradient, true)
    torch.testing.assert_close(found.mean, true)
    assert found.bound.abs().max() < 1e-15


@given(name=st.sampled_from(list(OBJECTIVES)), seed=st.integers(0, 10_000), V=st.integers(2, 12))
def test_the_bound_bounds_the_bias(name: str, seed: int, V: int) -> None:
    old, new, advantage = problem(V=V, S=2, seed=seed)
    found = moments(objectives.make(name), old, new, advantage)
    assert ((found.mean - found.gradient).norm(dim=-1) <= found.bound * (1 + 1e-9) + 1e-12).all()
    assert (found.variance >= -1e-9).all()


def test_the_mean_over_draws_has_the_stated_error() -> None:
    """Drawn, not enumerated: the mean square error of 64 tokens, 4000 times."""
    found = estimator(DGPO(), 0.3, [5], vocabulary=9, draws=64)
    generator = torch.Generator().manual_seed(5)
    old = -1.2 * torch.arange(1, 10).double().log() + 0.3 * torch.randn(9, generator=generator, dtype=torch.float64)
    advantage = torch.where(torch.rand(9, generator=generator, dtype=torch.float64) < 0.5, -1.0, 1.0).double()
    new = old + 0.3 * advantage + 0.3 * torch.randn(9, generator=generator, dtype=torch.float64)
    q, p, x = old.softmax(0), new.softmax(0), new.log_softmax(0) - old.log_softmax(0)
    tokens = TokenBatch(x[:, None], torch.zeros(9, 1).double(), advantage, torch.ones(9, 1, dtype=torch.bool))
    w = DGPO().weight(tokens)[:, 0]
    each = (advantage * w)[:, None] * (torch.eye(9).double() - p)
    true = p * advantage - p * (p @ advantage)
    drawn = q.multinomial(4000 * 64, replacement=True).view(4000, 64)
    errors = (each[drawn].mean(1) - true).square().sum(1) / true.square().sum()
    assert found.mse.item() == pytest.approx(errors.mean().item(), abs=4 * errors.std().item() / math.sqrt(4000))


@pytest.mark.parametrize("method", ["gspo", "gmpo", "vespo"])
def test_a_sequence_level_method_sees_responses_of_one_token(method: str) -> None:
    alone = estimator(objectives.make(method), 0.6, [3], vocabulary=50)
    among = estimator(objectives.make(method), 0.6, range(6), vocabulary=50)
    assert alone.mse.item() == pytest.approx(among.mse[3].item(), rel=1e-12)


def test_gspo_on_one_token_is_a_hard_clip() -> None:
    wide = objectives.make("gspo", eps_low=0.2, eps_high=0.2)
    torch.testing.assert_close(estimator(wide, 0.3, range(4)).mse, estimator(GRPO(), 0.3, range(4)).mse)


def test_the_same_arguments_give_the_same_values() -> None:
    first, second = (estimator(DGPO(), 0.3, range(3)) for _ in range(2))
    assert torch.equal(first.mse, second.mse)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize(
    ("drift", "seeds", "vocabulary", "draws"),
    [
        (math.nan, [0], 9, 1),
        (math.inf, [0], 9, 1),
        (-0.1, [0], 9, 1),
        (0.1, [], 9, 1),
        (0.1, [0], 1, 1),
        (0.1, [0], 9, 0),
    ],
)
def test_estimator_says_what_it_was_given(drift: float, seeds: list[int], vocabulary: int, draws: int) -> None:
    with pytest.raises(ValueError, match=r"drift = .*seeds; expected"):
        estimator(IS(), drift, seeds, vocabulary, draws)


@pytest.mark.parametrize("baseline", ["old", "current"])
def test_a_baseline_is_the_mean_of_the_advantage_under_that_policy(baseline: str) -> None:
    old, new, advantage = (values.unsqueeze(0) for values in drifted(0.6, 3, 50))
    centred = advantage - ((old if baseline == "old" else new).softmax(-1) * advantage).sum()
    by_hand = moments(DGPO(), old, new, centred)
    found = estimator(DGPO(), 0.6, [3], vocabulary=50, baseline=baseline)  # type: ignore[arg-type]
    size = by_hand.gradient.norm()
    torch.testing.assert_close(by_hand.gradient, moments(DGPO(), old, new, advantage).gradient)
    torch.testing.assert_close(found.bias, ((by_hand.mean - by_hand.gradient).norm() / size).unsqueeze(0))
    torch.testing.assert_close(found.variance, by_hand.variance / (256 * size**2))


def test_an_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown baseline 'curent', did you mean 'current'\?; known: none, old, curr"
    ):
        estimator(IS(), 0.1, [0], baseline="curent")  # type: ignore[arg-type]


def test_moments_says_which_shapes_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\], \[2, 3\], \[3\]; expected \[S, V\]"):
        moments(IS(), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
