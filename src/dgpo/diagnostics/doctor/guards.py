"""Advice for tokens with A < 0 and r >> 1: the fields of an objective that bound its weight there."""

from __future__ import annotations

import math

import torch

from dgpo.objectives import OBJECTIVES, Objective
from dgpo.tokens import TokenBatch

FAR = 100.0
"""A ratio that no trust region would allow."""

CAP = 3.0
"""Recommended value of a guard; verl's default for its dual clip."""


def reverse_weight(objective: Objective, ratio: float = FAR) -> float:
    """The weight of a token with A = -1 at this ratio, in a response whose other tokens have not moved."""
    # log π_old = -8: at 100 times the probability, π is still below 1
    logprob = torch.tensor([[math.log(ratio), 0.0, 0.0]]) - 8.0
    tokens = TokenBatch(
        logprob, torch.full_like(logprob, -8.0), torch.tensor([-1.0]), torch.ones_like(logprob, dtype=torch.bool),
        entropy=torch.ones_like(logprob),
    )  # fmt: skip
    return float(objective.calibrate(tokens).weight(tokens)[0, 0].abs())


def guards(objective: Objective) -> tuple[str, ...]:
    """The fields that reduce this weight to `CAP` or below when set to `CAP`; empty if it is bounded already."""
    return () if reverse_weight(objective) <= CAP else objective.guards


def bounded() -> tuple[str, ...]:
    """Methods whose weight there is bounded by `CAP` with default fields."""
    return tuple(name for name, cls in OBJECTIVES.items() if reverse_weight(cls()) <= CAP)


def advice(objective: Objective | None) -> str:
    """The advice for this objective."""
    if objective is None:
        return (
            "Cap the weight of negative advantages: the dual clip of PPO (clip_ratio_c in verl, delta in TRL), or an "
            f"objective that bounds it ({', '.join(bounded())})."
        )
    if found := guards(objective):
        fields = " or ".join(f"{name}={CAP:g}" for name in found)
        return f"Set {fields} (objective_kwargs): it bounds the weight where A < 0. Or use a lower learning rate."
    if reverse_weight(objective) <= CAP:
        return (
            "This objective bounds the weight already; the rest comes from many such tokens. Use a lower learning "
            "rate or fewer updates per generation."
        )
    return (
        f"This objective has no field that bounds the weight where A < 0; these bound it by default: "
        f"{', '.join(bounded())}. Or use a lower learning rate, or fewer updates per generation."
    )
