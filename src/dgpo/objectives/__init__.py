"""Objectives: how much of the policy gradient to keep at an importance ratio. One file per method."""

from __future__ import annotations

from typing import Any

from dgpo.objectives.dgpo import DGPO
from dgpo.objectives.grpo import GRPO
from dgpo.objectives.maspo import MASPO
from dgpo.objectives.objective import Objective, Properties
from dgpo.registry import build

OBJECTIVES: dict[str, type[Objective]] = {
    "dgpo": DGPO,
    "grpo": GRPO,
    "maspo": MASPO,
}

__all__ = ["DGPO", "GRPO", "MASPO", "OBJECTIVES", "Objective", "Properties", "make"]


def make(name: str, **fields: Any) -> Objective:
    """Build an objective of the registry, for example `make("dgpo", n=2, m=2)`.

    Raises:
        ValueError: unknown name or field, with the nearest known one; or a field outside its range.
    """
    return build("objective", OBJECTIVES, name, fields)
