"""Names of objectives in tables and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgpo import objectives
from dgpo.objectives import Objective
from dgpo.registry import written


def label(objective: Objective) -> str:
    """`name:field=value,...`, as `dgpo.registry.parse` reads it, with the fields that differ from their defaults."""
    return written(objectives.name_of(type(objective)), objective)


def unregistered(info: Mapping[str, Any]) -> str | None:
    """The name of the objective in a `run.json`, if it is not known here (`find_recorded`); otherwise None."""
    name = (info.get("objective") or {}).get("name")
    return None if name is None or objectives.find_recorded(str(name)) is not None else str(name)
