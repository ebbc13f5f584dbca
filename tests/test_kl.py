"""KL estimators: closed forms, exact expectations over an enumerated softmax, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dgpo
from dgpo import kl

V = 7


def policies() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of π (a leaf), log-probs of a reference and of an old policy, over V actions."""
    logits, reference, old = torch.randn(3, V, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(0), old.log_softmax(0)


def exact_kl(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    return (logprob.exp() * (logprob - ref_logprob)).sum()


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_closed_forms(logprob: float, ref_logprob: float) -> None:
    d = ref_logprob - logprob
    bounded = max(-20.0, min(20.0, d))
    a, b = torch.tensor([[logprob]], dtype=torch.float64), torch.tensor([[ref_logprob]], dtype=torch.float64)
    assert kl.k1(a, b).item() == pytest.approx(-d, rel=1e-12, abs=1e-300)
    assert kl.k2(a, b).item() == pytest.approx(bounded**2 / 2, rel=1e-12, abs=1e-300)
    assert kl.k3(a, b).item() == pytest.approx(math.exp(bounded) - bounded - 1, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_k3_is_never_negative(dtype: torch.dtype) -> None:
    """Also for two policies that nearly agree, where exp(d) - d - 1 is a difference of rounding errors of 1.

    One unit in the last place of d is left to the library's expm1.
    """
    size = torch.logspace(-8, 1.5, 20_001, dtype=torch.float64)
    d = torch.cat([-size, size]).to(dtype)
    assert (kl.k3(torch.zeros_like(d), d) + torch.finfo(dtype).eps * d.abs()).min().item() >= 0
    assert kl.k3(d, d).abs().max().item() == 0


def test_k3_of_policies_that_nearly_agree_is_accurate_in_float32() -> None:
    d = torch.tensor([-3e-2, -1e-3, -1e-4, 1e-4, 1e-3, 3e-2], dtype=torch.float32)
    exact = [x * x / 2 + x**3 / 6 + x**4 / 24 + x**5 / 120 for x in d.tolist()]
    assert kl.k3(torch.zeros_like(d), d).tolist() == pytest.approx(exact, rel=3e-3)


def test_expectations_of_k1_and_k3_are_the_exact_kl() -> None:
    logits, reference, _ = policies()
    logprob = logits.log_softmax(0)
    for estimator in (kl.k1, kl.k3):
        expectation = (logprob.exp() * estimator(logprob, reference)).sum()
        torch.testing.assert_close(expectation, exact_kl(logprob, reference), rtol=1e-12, atol=0)
    biased = (logprob.exp() * kl.k2(logprob, reference)).sum()
    assert (biased - exact_kl(logprob, reference)).abs() > 1e-3


def expected_gradient(estimate: Tensor, sampled_from: Tensor, logits: Tensor) -> Tensor:
    """E over samples of the gradient of an estimator: the probabilities of the samples are not differentiated."""
    return torch.autograd.grad((sampled_from.detach().exp() * estimate).sum(), logits)[0]


def test_expected_gradients_on_policy() -> None:
    """k2's is that of the KL, k1's is 0, and k3's is neither."""
    logits, reference, _ = policies()
    (of_the_kl,) = torch.autograd.grad(exact_kl(logits.log_softmax(0), reference), logits)

    def of(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        logprob = logits.log_softmax(0)
        return expected_gradient(estimator(logprob, reference), logprob, logits)

    torch.testing.assert_close(of(kl.k2), of_the_kl, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of(kl.k1), torch.zeros(V, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (of(kl.k3) - of_the_kl).abs().max() > 1e-2


def test_expected_gradient_of_k3_ratio_is_exact_off_policy() -> None:
    """With both factors differentiated, Σ π_old · r · k3 = Σ π · k3: value and gradient are those of the KL."""
    logits, reference, old = policies()
    logprob = logits.log_softmax(0)
    estimate = kl.k3_ratio(logprob, reference, old)
    exact = exact_kl(logprob, reference)
    torch.testing.assert_close((old.exp() * estimate).sum(), exact, rtol=1e-12, atol=0)
    (of_the_kl,) = torch.autograd.grad(exact, logits, retain_graph=True)
    torch.testing.assert_close(expected_gradient(estimate, old, logits), of_the_kl, rtol=1e-11, atol=1e-14)


def test_k3_ratio_is_the_naive_expression_with_both_factors_differentiated() -> None:
    logprob = (torch.randn(3, 4, dtype=torch.float64) - 3).requires_grad_()
    reference, old = (logprob + torch.randn(2, 3, 4, dtype=torch.float64)).detach()
    naive = (logprob - old).exp() * ((reference - logprob).exp() - (reference - logprob) - 1)
    found = kl.k3_ratio(logprob, reference, old)
    torch.testing.assert_close(found, naive, rtol=1e-11, atol=1e-14)
    ours, expected = (torch.autograd.grad(total.sum(), logprob)[0] for total in (found, naive))
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-13)
    product_rule = naive + (logprob - old).exp() * (1 - (reference - logprob).exp())
    torch.testing.assert_close(ours, product_rule.detach(), rtol=1e-11, atol=1e-13)


def test_gradcheck() -> None:
    logprob = (torch.randn(2, 5, dtype=torch.float64) - 2).requires_grad_()
    reference, old = (logprob + torch.randn(2, 2, 5, dtype=torch.float64)).detach()
    for estimator in (kl.k1, kl.k2, kl.k3):
        assert torch.autograd.gradcheck(lambda x, f=estimator: f(x, reference), logprob)
    assert torch.autograd.gradcheck(lambda x: kl.k3_ratio(x, reference, old), logprob)


@pytest.mark.parametrize("d", [-300.0, -25.0, 25.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_apart_the_value_is_that_of_the_clamp_and_the_gradient_is_kept(d: float, dtype: torch.dtype) -> None:
    """A policy that has run away from its reference is still pulled back, with the force of 20 nats."""
    logprob = torch.full((1, 1), -0.5 - max(d, 0.0), dtype=dtype).requires_grad_()
    reference = (logprob + d).detach()
    bounded = math.copysign(20.0, d)
    expected = {
        kl.k2: (200.0, -bounded),
        kl.k3: (math.exp(bounded) - bounded - 1, 1 - math.exp(bounded)),
    }
    for estimator, (value, slope) in expected.items():
        estimate = estimator(logprob, reference)
        (gradient,) = torch.autograd.grad(estimate.sum(), logprob)
        assert estimate.item() == pytest.approx(value, rel=1e-5)
        assert gradient.item() == pytest.approx(slope, rel=1e-5)


def cut_off(pi: Tensor, kind: str) -> Tensor:
    """μ: π without its tail, normalised again, as samplers make it."""
    ordered, order = pi.sort(descending=True)
    if kind == "top_p":  # the smallest set of tokens that holds 0.9
        kept = ordered.cumsum(0) - ordered < 0.9
    elif kind == "top_k":
        kept = torch.arange(len(pi)) < 50
    else:  # min_p: a twentieth of the likeliest
        kept = ordered >= 0.05 * ordered[0]
    mu = torch.where(kept, ordered, 0.0).gather(0, order.argsort())
    return mu / mu.sum()


@pytest.mark.parametrize("kind", ["top_p", "top_k", "min_p"])
def test_expectations_under_a_sampler_that_cuts_its_tail(kind: str) -> None:
    """Enumerated over 1000 tokens: k1 is the KL, the cut mass what is never drawn, and k3 misses one by the other."""
    generator = torch.Generator().manual_seed(0)
    zipf = -1.2 * torch.arange(1, 1001, dtype=torch.float64).log()
    pi = (zipf + 0.3 * torch.randn(1000, generator=generator, dtype=torch.float64)).softmax(0)
    mu = cut_off(pi, kind)
    support = mu > 0
    kept = pi[support].sum()
    assert 0.3 < kept < 0.95
    log_mu, log_pi = mu[support].log(), pi[support].log()

    def expectation(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return (mu[support] * estimator(log_mu, log_pi)).sum()

    true = -kept.log()
    torch.testing.assert_close((mu[support] * (log_mu - log_pi)).sum(), true)
    torch.testing.assert_close(expectation(kl.k1), true)
    torch.testing.assert_close(expectation(kl.cut_mass), 1 - kept)
    torch.testing.assert_close(expectation(kl.k3), true - (1 - kept))
    # drawn instead of enumerated, and as the loss logs them
    drawn = mu.multinomial(40_000, replacement=True, generator=generator).view(200, 200)
    old, rollout = pi.log()[drawn], mu.log()[drawn]
    mask = torch.ones_like(drawn, dtype=torch.bool)
    logged = dgpo.policy_loss(old, None, torch.ones(200), mask, rollout_logprob=rollout).statistics
    for name, exact in (("kl/sampler_k1", true), ("sampler/cut_mass", 1 - kept), ("kl/sampler", true - (1 - kept))):
        torch.testing.assert_close(logged[name], exact)  # μ/π is one number, so that there is no noise


def test_a_sampler_that_covers_the_policy_has_no_cut_mass() -> None:
    logits, reference, _ = policies()
    logprob = logits.detach().log_softmax(0)
    assert (logprob.exp() * kl.cut_mass(logprob, reference)).sum().abs() < 1e-15
    torch.testing.assert_close(kl.cut_mass(logprob, reference), kl.k1(logprob, reference) - kl.k3(logprob, reference))
