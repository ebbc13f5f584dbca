"""Correction ρ: a factor for a sampler μ that differs from the policy as the trainer computes it.

μ (an inference engine) and π_old (the trainer's own forward pass of the same weights) differ by kernels, precision and
staleness. ρ = π_old / μ, bounded, multiplies the policy term. It is a factor of its own, never part of an objective's
w: w measures how far the policy has moved since sampling, ρ how wrong the sampler was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo.correction.contract import Correction, Level
from dgpo.correction.ratios import Band, Given, Truncate
from dgpo.correction.rejections import Geometric, KPop, Reject, Rejection, Veto
from dgpo.registry import build

CORRECTIONS: dict[str, type[Correction]] = {
    "truncate": Truncate,
    "band": Band,
    "geometric": Geometric,
    "reject": Reject,
    "veto": Veto,
    "kpop": KPop,
}


def make(name: str | Mapping[str, Any], **fields: Any) -> Correction:
    """Build a correction by name, for example `make("truncate", level="sequence", cap=2.0)`.

    Args:
        name: as accepted by `dgpo.registry.parse`, with or without fields.
        fields: further fields.

    Raises:
        ValueError: an unknown name or field, with the nearest known one; or a field outside its range.
    """
    return build("correction", CORRECTIONS, name, fields)


__all__ = [
    "CORRECTIONS",
    "Band",
    "Correction",
    "Geometric",
    "Given",
    "KPop",
    "Level",
    "Reject",
    "Rejection",
    "Truncate",
    "Veto",
    "make",
]
