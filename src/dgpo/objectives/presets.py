"""Presets: papers whose contribution is a combination, not a weight: objective, aggregation and advantage together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo.registry import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A combination by the names that a configuration takes.

    Attributes:
        objective: name of an objective.
        objective_kwargs: its fields, where they differ from the defaults.
        aggregation: name of an aggregation; a length it needs is the completion budget.
        advantage: name of an advantage.
        source: paper.
    """

    objective: str
    objective_kwargs: Mapping[str, Any] = field(default_factory=dict)
    aggregation: str
    advantage: str
    source: str


PRESETS: dict[str, Preset] = {
    # the paper's dynamic sampling and soft overlong reward are options of the trainer and of the reward
    "dapo": Preset(
        objective="grpo",
        objective_kwargs={"eps_low": 0.2, "eps_high": 0.28},
        aggregation="token-mean",
        advantage="std",
        source="arXiv 2503.14476",
    ),
    "dr_grpo": Preset(
        objective="grpo",
        aggregation="seq-mean-token-sum-norm",
        advantage="none",
        source="arXiv 2503.20783",
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError, with the nearest known name, if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
