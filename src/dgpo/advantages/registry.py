"""Advantages by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo.advantages.advantage import Advantage
from dgpo.advantages.baselines import AsymmetricReinforce, Quantile
from dgpo.advantages.by_correctness import NegativeSamples, WeightedReinforce
from dgpo.advantages.entropy_shaped import EntropyShaped
from dgpo.advantages.gdpo import DecoupledRewards
from dgpo.advantages.group_relative import Centred, LeaveOneOut, Standardised
from dgpo.advantages.maxrl import MaxRL
from dgpo.advantages.pass_at_k import BestOfGroup, PassAtK
from dgpo.advantages.smooth import Smooth
from dgpo.registry import build, parse, plain

ADVANTAGES: dict[str, type[Advantage]] = {
    "std": Standardised,
    "none": Centred,
    "leave_one_out": LeaveOneOut,
    "entropy_shaped": EntropyShaped,
    "smooth": Smooth,
    "maxrl": MaxRL,
    "gdpo": DecoupledRewards,
    "asymre": AsymmetricReinforce,
    "qae": Quantile,
    "pass_at_k": PassAtK,
    "grpo_passk": BestOfGroup,
    "nsr": NegativeSamples,
    "w_reinforce": WeightedReinforce,
}

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
