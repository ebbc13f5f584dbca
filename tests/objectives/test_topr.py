"""TOPR, by token and by response: the closed forms, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import torch
from closed_forms import Method, by_region

from dgpo import TokenBatch
from dgpo.objectives import TOPRSequence


def topr_form(x: Any, q: Any, sign: int) -> Any:
    if sign > 0 or x > 0:
        return 1, 1 + x, 1 + abs(x)
    return mpmath.exp(x), mpmath.exp(x), mpmath.exp(x)


def topr_sequence_form(x: Any, q: Any, sign: int) -> Any:
    w = 1 if sign > 0 else min(mpmath.exp(x), 1)
    return w, w, w


METHODS = {
    "topr": Method(closed_form=topr_form),
    "topr_sequence": Method(closed_form=topr_sequence_form),
}

test_closed_form = by_region(METHODS)


def test_the_ratio_of_a_response_is_a_product_over_its_valid_tokens() -> None:
    x = torch.tensor([[-0.5, 0.2, 9.0], [-0.5, 0.2, 9.0], [0.5, 0.2, -9.0]], dtype=torch.float64)
    old = torch.full_like(x, -10.0)
    mask = torch.tensor([[True, True, False]] * 3)
    tokens = TokenBatch(old + x, old, torch.tensor([-1.0, 1.0, -2.0]), mask)
    weight = TOPRSequence().weight(tokens)[mask].view(3, 2)
    assert weight.tolist() == [pytest.approx([torch.tensor(-0.3).exp().item()] * 2, rel=1e-7), [1.0] * 2, [1.0] * 2]
