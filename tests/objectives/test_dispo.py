"""DISPO: the closed form, and what it is at equal bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import NEAR, Method, by_region, capped, tokens_at

from dgpo.objectives import CISPO, DISPO, CISPOTwoSided


def dispo_form(x: Any, q: Any, sign: int, **eps: Any) -> Any:
    side = "pos" if sign > 0 else "neg"
    return capped(x, 1 + eps[f"eps_high_{side}"], max(1 - eps[f"eps_low_{side}"], 0))


METHODS = {
    "dispo": Method(
        closed_form=dispo_form,
        settings=[{"eps_low_pos": 1.5, "eps_high_pos": 0.3, "eps_low_neg": 0.1, "eps_high_neg": 2}],
        extreme=[
            {"eps_low_pos": 0, "eps_high_pos": 0, "eps_low_neg": 0, "eps_high_neg": 0},
            {"eps_low_pos": NEAR, "eps_high_pos": NEAR, "eps_low_neg": 1 - NEAR},
        ],
    ),
}

test_closed_form = by_region(METHODS)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_at_equal_bounds_it_is_cispo(advantage: float) -> None:
    tokens = tokens_at([-3.0, -0.3, 0.0, 0.15, 0.25, 2.0], advantage)
    for eps_low, other in ((0.2, CISPOTwoSided()), (1, CISPO(cap=1.2))):
        same = DISPO(eps_low_pos=eps_low, eps_high_pos=0.2, eps_low_neg=eps_low, eps_high_neg=0.2)
        torch.testing.assert_close(same.weight(tokens), other.weight(tokens), rtol=1e-15, atol=0)
        torch.testing.assert_close(same.potential(tokens), other.potential(tokens), rtol=1e-15, atol=0)
