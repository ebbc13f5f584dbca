"""w over the ratio for any objective: the curves that the tokens of a run are drawn on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dgpo import objectives
from dgpo.objectives import Objective
from dgpo.report.series import rounded
from dgpo.tokens import TokenBatch

POINTS = 161
OLD_PROBS = (0.5, 0.1, 0.01)
EXPLORED = ("dgpo", "maspo")
"""The objectives whose formula the page evaluates itself."""


def grid(reach: float) -> list[float]:
    """Log ratios from -reach to reach, 0 among them."""
    middle = POINTS // 2
    return [reach * (i - middle) / middle for i in range(POINTS)]


@torch.no_grad()
def weights(objective: Objective, log_ratio: Sequence[float], old_prob: float, advantage: float) -> list[float | None]:
    """w at each log ratio, for one token with probability `old_prob` under π_old, in a response of its own.

    A method of sequence level sees its sequence ratio there. One that adapts to the batch has the bounds that it
    starts from, unless it is calibrated. None where π_θ would be above 1.

    Args:
        objective: any.
        log_ratio: log π_θ - log π_old, in nats.
        old_prob: π_old, in (0, 1].
        advantage: A.
    """
    old = torch.full((len(log_ratio), 1), math.log(old_prob), dtype=torch.float64)
    new = old + torch.tensor(list(log_ratio), dtype=torch.float64).unsqueeze(1)
    tokens = TokenBatch(
        new,
        old,
        torch.full((len(log_ratio),), advantage, dtype=torch.float64),
        torch.ones(new.shape, dtype=torch.bool),
        rollout_logprob=old,
        entropy=torch.zeros_like(new),
    )
    found = objective.weight(tokens)[:, 0].tolist()
    # a hair above 1 is rounding
    return [rounded(w) if x <= 1e-9 else None for w, x in zip(found, new[:, 0].tolist(), strict=True)]


def curves(
    chosen: Mapping[str, Objective], log_ratio: Sequence[float], old_probs: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Every objective at every π_old, for A = -1 and A = 1, as JSON.

    Args:
        chosen: label -> objective.
        log_ratio: the grid, in nats.
        old_probs: (what it is, π_old).
    """
    return {
        "log_ratio": [rounded(x, 7) for x in log_ratio],
        "old_probs": [{"name": name, "value": rounded(q)} for name, q in old_probs],
        "methods": [
            {
                "label": label,
                "adaptive": "batch" in objective.reads,
                "sequence": objective.level == "sequence",
                "negative": [weights(objective, log_ratio, q, -1.0) for _, q in old_probs],
                "positive": [weights(objective, log_ratio, q, 1.0) for _, q in old_probs],
            }
            for label, objective in chosen.items()
        ],
    }


def registered() -> dict[str, Objective]:
    """Every registered objective with its defaults."""
    return {name: objectives.make(name) for name in objectives.OBJECTIVES}


def explored() -> dict[str, dict[str, Any]]:
    """The defaults that the explorer starts from."""
    return {name: dict(vars(objectives.make(name))) for name in EXPLORED}
