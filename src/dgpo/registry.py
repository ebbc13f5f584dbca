"""Build a registered dataclass from its name and check its fields, with errors that name what would have been right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeVar

T = TypeVar("T")


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """', did you mean ...?' if something known is near enough, otherwise nothing."""
    match = get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else ""


def build(kind: str, registry: Mapping[str, type[T]], name: str, fields: Mapping[str, Any]) -> T:
    """`registry[name](**fields)`.

    Raises:
        ValueError: unknown name, unknown field or missing field; whatever the class raises for a value.
    """
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, registry)}; known: {', '.join(registry)}")
    cls = registry[name]
    declared = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = [field.name for field in declared]
    for field in fields:
        if field not in known:
            raise ValueError(
                f"{kind} {name!r} has no field {field!r}{did_you_mean(field, known)}; "
                f"its fields: {', '.join(known) or 'none'}"
            )
    for required in declared:
        optional = required.default is not dataclasses.MISSING or required.default_factory is not dataclasses.MISSING
        if not optional and required.name not in fields:
            raise ValueError(f"{kind} {name!r} needs {required.name!r}: {name!r} has no default for it")
    return cls(**fields)


def check_number(
    owner: object, name: str, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Raise ValueError unless the field `name` of `owner` is a number in [low, high], without an open end."""
    value = getattr(owner, name)
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        above = low < number if open_low else low <= number
        below = number < high if open_high else number <= high
        if above and below:
            return
    allowed = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    raise ValueError(f"{type(owner).__name__}: {name} = {value!r} is not allowed; expected a number in {allowed}")
