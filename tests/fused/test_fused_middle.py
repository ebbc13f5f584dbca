"""The middle by itself: both ways into `gradient_`, and a chunk whose tokens share one signal."""

from __future__ import annotations

import pytest
import torch
from fused_problems import gradients, make_problem

from dgpo.fused.head import Head
from dgpo.fused.middle import TorchMiddle

PLAIN, CAPPED = Head(), Head(temperature=0.7, softcap=4.0, bias=torch.linspace(-1, 1, 19))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("head", [PLAIN, CAPPED], ids=["plain", "capped"])
@pytest.mark.parametrize("bonus", [False, True])
def test_the_gradient_is_the_same_from_the_scratch_and_from_the_logits(
    dtype: torch.dtype, head: Head, bonus: bool
) -> None:
    logits = (3 * torch.randn(5, 19)).to(dtype)
    ids = torch.randint(0, 19, (5,))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    g, h = torch.randn(5, dtype=exact), torch.randn(5, dtype=exact) if bonus else None
    middle = TorchMiddle(head, dtype, logits.device)
    logprob, entropy, lse = middle.stats(logits, ids)

    leaf = logits.double().clone().requires_grad_()
    raw = leaf if head.bias is None else leaf + head.bias.double()
    capped = raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)
    logp = (capped / head.temperature).log_softmax(-1)
    truth = logp.gather(1, ids.unsqueeze(1)).squeeze(1), -(logp.exp() * logp).sum(-1)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(logprob.double(), truth[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), truth[1], rtol=tolerance, atol=tolerance)
    total = (g * truth[0]).sum() + (0 if h is None else (h * truth[1]).sum())
    expected = torch.autograd.grad(total, leaf)[0]

    for forget in (False, True):
        out = torch.empty_like(logits)
        if forget:
            middle.forget()
        middle.gradient_(logits, ids, logprob, entropy, lse, g, h, out=out)
        rtol = 1e-10 if dtype == torch.float64 else 2**-8
        torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=rtol * 1e-3)
        middle.stats(logits, ids)


@pytest.mark.parametrize("objective", ["dgpo", "gspo"])
def test_one_signal_per_chunk(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where the middle holds nothing for the second pass."""
    problem = make_problem()
    _, expected = gradients(problem, objective=objective, entropy_coef=0.1, softcap=4.0)
    monkeypatch.setattr(TorchMiddle, "holds", False)
    monkeypatch.setattr(TorchMiddle, "block_rows", lambda self, vocabulary: 3)
    _, found = gradients(problem, objective=objective, entropy_coef=0.1, softcap=4.0, chunk_tokens=10)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
