"""What objectives are called in tables and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo.objectives import OBJECTIVES, Objective
from dgpo.registry import written


def label(objective: Objective) -> str:
    """`name:field=value,...`, as `dgpo.registry.parse` reads it, with the fields that differ from their defaults."""
    return written(name_of(objective), objective)


def name_of(objective: Objective) -> str:
    """Its name in the registry, or else that of its class."""
    return next((name for name, cls in OBJECTIVES.items() if cls is type(objective)), type(objective).__name__)


def unregistered(info: Mapping[str, Any]) -> str | None:
    """The name of the objective in a `run.json`, if it is not in the registry here; else None."""
    name = (info.get("objective") or {}).get("name")
    return None if name is None or name in OBJECTIVES else str(name)
