"""Advantages by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo.advantages.advantage import Advantage
from dgpo.advantages.distill import Distill
from dgpo.advantages.of_rewards import OF_REWARDS
from dgpo.registry import build, parse, plain

ADVANTAGES: dict[str, type[Advantage]] = {**OF_REWARDS, "distill": Distill}

ALIASES = {"grpo": "std", "dr_grpo": "none", "rloo": "leave_one_out", "max_rl": "maxrl"}
"""What papers and frameworks call some of them."""


def canonical(name: str) -> str:
    """The name in `ADVANTAGES` of one in `ALIASES`; any other name as it is."""
    return ALIASES.get(plain(name), name)


def make(name: str | Mapping[str, Any], **fields: Any) -> Advantage:
    """Build an advantage by name, for example `make("entropy_shaped", alpha=0.4)`.

    Args:
        name: as accepted by `dgpo.registry.parse`, with or without fields; also one of `ALIASES`.
        fields: further fields.

    Raises:
        ValueError: an unknown name or field, with the nearest known one; or a field outside its range.
    """
    found, given = parse("advantage", name)
    return build("advantage", ADVANTAGES, {"name": canonical(found), **given}, fields)
