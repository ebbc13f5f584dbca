"""Reading `run.json`: entries of the wrong kind are left out, so that nobody who reads one has to check it."""

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
"""An objective that is there and cannot be read: not the same as none, for which the weight is r."""


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
TEXT: Kind = ("a string", _text)
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
"""Entry -> what it must be, unless it is null. Entries that doctor, replay and report do not read are not checked."""


def recorded_info(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a run that is to be continued; None where there is none.

    Raises:
        ValueError: it cannot be read.
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
