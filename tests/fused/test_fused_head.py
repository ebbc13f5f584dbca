"""The head as a formula: logits, their derivative and scores against float64 autograd; out of place and in place."""

from __future__ import annotations

import math

import pytest
import torch

from dgpo.fused.head import Head

BIAS = torch.linspace(-1, 1, 9, dtype=torch.float64)
HEADS = [
    Head(),
    Head(temperature=0.7),
    Head(scale=0.0625),
    Head(softcap=3.0),
    Head(scale=0.4, softcap=5.0, temperature=1.3, bias=BIAS),
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_logits_and_what_comes_back(head: Head) -> None:
    raw = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(8).requires_grad_()
    z = head.scale * (raw if head.bias is None else raw + head.bias)
    z = (z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)) / head.temperature
    found = head.logits(raw)
    torch.testing.assert_close(found, z, rtol=1e-12, atol=1e-12)
    product = raw.detach().clone()
    assert torch.equal(head.logits(product, out=product), found)
    if head.plain:
        assert found is raw

    upstream = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(z, raw, upstream)
    torch.testing.assert_close(torch.autograd.grad(found, raw, upstream)[0] if not head.plain else upstream, expected)
    head.pull_back_(upstream, z.detach())
    torch.testing.assert_close(upstream, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_scores_are_those_of_a_categorical_distribution(head: Head) -> None:
    product = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    token_ids = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(3))
    truth = torch.distributions.Categorical(logits=head.logits(product))
    logprob, entropy = head.scores(product, token_ids)
    torch.testing.assert_close(logprob, truth.log_prob(token_ids))
    torch.testing.assert_close(entropy, truth.entropy())


def test_a_forbidden_token_has_no_share_in_the_entropy() -> None:
    logprob, entropy = Head().scores(torch.tensor([0.0, 0.0, -math.inf]), torch.tensor(0))
    assert logprob.item() == pytest.approx(-math.log(2))
    assert entropy.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["scale", "softcap", "temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, True, "1"], ids=repr)
def test_a_number_outside_its_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} = .* is not allowed; expected a number in"):
        Head(**{name: value})  # type: ignore[arg-type]
