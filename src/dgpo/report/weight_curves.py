"""Curves of w over the ratio for any objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dgpo import objectives
from dgpo.objectives import Objective
from dgpo.objectives.curves import weight_curve
from dgpo.report.series import rounded

POINTS = 161
OLD_PROBS = (0.5, 0.1, 0.01)
EXPLORED = ("dgpo", "maspo")
"""Objectives whose formula the script of the page evaluates."""


def grid(reach: float) -> list[float]:
    """Log ratios from -reach to reach, 0 among them."""
    # from integers, so that the middle is exactly 0
    middle = POINTS // 2
    return [reach * (i - middle) / middle for i in range(POINTS)]


def weights(objective: Objective, log_ratio: Sequence[float], old_prob: float, advantage: float) -> list[float | None]:
    """w at each log ratio, as `weight_curve` draws it; None where π_θ would be above 1.

    Args:
        objective: any.
        log_ratio: log π_θ - log π_old, in nats.
        old_prob: π_old, in (0, 1].
        advantage: A.
    """
    curve = weight_curve(objective, log_ratio, advantage=advantage, old_logprob=math.log(old_prob))
    pairs = zip(curve.weight.tolist(), curve.possible.tolist(), strict=True)
    return [rounded(w) if possible else None for w, possible in pairs]


def curves(
    chosen: Mapping[str, Objective], log_ratio: Sequence[float], old_probs: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Every objective at every π_old, for A = -1 and A = 1, as JSON.

    Args:
        chosen: label -> objective.
        log_ratio: the grid, in nats.
        old_probs: (description, π_old).
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
    """The initial field values of the explorer."""
    return {name: dict(vars(objectives.make(name))) for name in EXPLORED}
