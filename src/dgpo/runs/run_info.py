"""`run.json` as it is read: entries of the wrong kind are left out, so that whoever reads one need not ask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dgpo import aggregation, objectives
from dgpo.aggregation import Aggregation
from dgpo.files import shortened
from dgpo.objectives import Objective
from dgpo.registry import build

UNREADABLE = {"name": None}
"""Stands for an objective that is there and cannot be read: not the same as none, under which the weight is r."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return _number(value) and value >= 1 and value == int(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


Kind = tuple[str, Callable[[Any], bool]]
OBJECT: Kind = ("an object", _object)
TEXT: Kind = ("a text", _text)
NUMBER: Kind = ("a finite number", _number)
POSITIVE: Kind = ("a finite number above 0", _positive)
COUNT: Kind = ("an integer >= 1", _count)
SWITCH: Kind = ("true or false", lambda value: isinstance(value, bool))

KINDS: dict[str, Kind] = {
    "objective": OBJECT,
    "aggregation": OBJECT,
    "config": OBJECT,
    "model": OBJECT,
    "data": OBJECT,
    "engine": TEXT,
    "tokenizer": TEXT,
    "world_size": COUNT,
    "updates_per_generation": POSITIVE,
    "model.name": TEXT,
    "model.parameters": NUMBER,
    "data.rows": NUMBER,
    "config.max_steps": NUMBER,
    "config.logging_steps": NUMBER,
    "config.gradient_accumulation_steps": COUNT,
    "config.max_grad_norm": NUMBER,
    "config.max_completion_length": COUNT,
    "config.mask_truncated_completions": SWITCH,
    "config.use_vllm": SWITCH,
}
"""Entry -> what it must be, or null, for those that the doctor, the replay and the report read; any other may be
anything."""


def checked(info: Any) -> tuple[dict[str, Any], list[str]]:
    """The entries that can be used, and one line for each that was left out."""
    if not isinstance(info, Mapping):
        return {"objective": UNREADABLE}, [f"it holds a {type(info).__name__}; expected an object"]
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in info.items()}
    complaints = []
    for path, (expected, fits) in KINDS.items():
        outer, _, inner = path.rpartition(".")
        place = found.get(outer) if outer else found
        if not isinstance(place, dict) or place.get(inner) is None or fits(place[inner]):
            continue
        complaints.append(f"{path} = {shortened(place[inner])}; expected {expected}")
        del place[inner]
        if path == "objective":
            found["objective"] = UNREADABLE
    for name, make in (("objective", objective_of), ("aggregation", aggregation_of)):
        try:
            make(found)
        except (TypeError, ValueError) as error:
            complaints.append(f"{name}: {error}")
            found[name] = UNREADABLE
    return found, complaints


def objective_of(info: Mapping[str, Any]) -> Objective | None:
    """The objective in a `run.json`; None where there is none, or one that is not known here (`find_recorded`).

    Raises:
        ValueError, TypeError: a field that the objective of this name does not have, or a value that it does not allow.
    """
    fields = dict(info.get("objective") or {})
    name = fields.pop("name", None)
    found = objectives.find_recorded(name) if isinstance(name, str) else None
    return None if found is None else build("objective", {name: found}, {"name": name}, fields)


def aggregation_of(info: Mapping[str, Any]) -> Aggregation | None:
    """The aggregation in a `run.json`; None where there is none that is known here. Raises as `objective_of`."""
    fields = dict(info.get("aggregation") or {})
    name = fields.pop("name", None)
    return aggregation.make(name, **fields) if isinstance(name, str) and name in aggregation.AGGREGATIONS else None
