"""Reading `run.json`. Entries of the wrong type are left out, so that callers need not check them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dgpo import aggregation, objectives
from dgpo.aggregation import Aggregation
from dgpo.files import read_json, shortened
from dgpo.objectives import Objective
from dgpo.registry import build
from dgpo.runs.schema import INFO, in_numbers

UNREADABLE = {"name": None}
"""An objective that is recorded but cannot be read. Without any objective the weight would be r."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Kind = tuple[str, Callable[[Any], bool]]
OBJECT: Kind = ("an object", lambda value: isinstance(value, Mapping))
TEXT: Kind = ("a string", lambda value: isinstance(value, str))
NUMBER: Kind = ("a finite number", _number)
POSITIVE: Kind = ("a finite number above 0", lambda value: _number(value) and value > 0)
COUNT: Kind = ("an integer >= 1", lambda value: _number(value) and value >= 1 and value == int(value))
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
    "config.num_generations": COUNT,
    "config.temperature": NUMBER,
    "config.top_p": NUMBER,
    "config.top_k": NUMBER,
    "config.learning_rate": NUMBER,
    "config.beta": NUMBER,
    "config.anchor": TEXT,
}
"""Entry -> what it must be, unless it is null. Entries that doctor, replay and report do not read are not checked."""


def recorded_info(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a run to resume; None if there is no such file.

    Raises:
        ValueError: if the file cannot be read.
    """
    file = folder / INFO
    if not file.exists():
        return None
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{str(file)!r} holds a {type(found).__name__}, not a run; record to another folder")
    return checked(found)[0]


def read_info(path: Path, leave_out: Callable[[str, str], None]) -> dict[str, Any]:
    """A `run.json`; `leave_out` is called for the file or each entry that cannot be used, with its name and why."""
    try:
        found = in_numbers(read_json(path))
    except (ValueError, OSError) as error:
        leave_out(INFO, str(error))
        return checked(None)[0]
    info, complaints = checked(found)
    for complaint in complaints:
        leave_out(f"{INFO}: {complaint.partition(' ')[0]}", f"{str(path)!r}: {complaint}")
    return info


def checked(info: Any) -> tuple[dict[str, Any], list[str]]:
    """The entries that can be used, and one line for each that was left out."""
    if not isinstance(info, Mapping):
        return {"objective": UNREADABLE}, [f"it holds a {type(info).__name__}; expected an object"]
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in info.items()}
    complaints = []
    for path, (expected, fits) in KINDS.items():
        outer, _, inner = path.rpartition(".")
        # KINDS has outer entries before inner ones: an outer one of the wrong type is gone by now
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
    """The objective in a `run.json`; None if there is none, or none of that name is known here (`find_recorded`).

    Raises:
        ValueError, TypeError: if the objective has no field of that name, or does not allow its value.
    """
    fields = dict(info.get("objective") or {})
    name = fields.pop("name", None)
    found = objectives.find_recorded(name) if isinstance(name, str) else None
    return None if found is None else build("objective", {name: found}, {"name": name}, fields)


def aggregation_of(info: Mapping[str, Any]) -> Aggregation | None:
    """The aggregation in a `run.json`; None if there is none, or it is not known here. Raises as `objective_of`."""
    fields = dict(info.get("aggregation") or {})
    name = fields.pop("name", None)
    return aggregation.make(name, **fields) if isinstance(name, str) and name in aggregation.AGGREGATIONS else None
