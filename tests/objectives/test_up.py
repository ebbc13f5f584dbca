"""UP: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

import torch
from closed_forms import DUAL, NEAR, Method, by_region, clipped, tokens_at

from dgpo.objectives import GRPO, UP


def up_form(x: Any, q: Any, sign: int, eps_low: Any, dual_clip: Any) -> Any:
    return (1, 1 + x, 1 + abs(x)) if sign > 0 else clipped(x, 1 - eps_low, 1, sign, dual_clip)


METHODS = {
    "up": Method(
        closed_form=up_form,
        settings=[{"eps_low": 0.1, "dual_clip": 3}],
        extreme=[{"eps_low": 0}, {"eps_low": NEAR}, {"eps_low": 1 - NEAR}, *DUAL],
    ),
}

test_closed_form = by_region(METHODS)


def test_negative_tokens_are_those_of_grpo() -> None:
    tokens = tokens_at([-5.0, -0.3, -0.2, 0.0, 0.4, 1.0, 2.0], -1.0)
    for fields in ({}, {"eps_low": 0.3, "dual_clip": 3}):
        for method in ("weight", "potential"):
            ours, theirs = (getattr(cls(**fields), method)(tokens) for cls in (UP, GRPO))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
