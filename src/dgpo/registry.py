"""Build a registered dataclass from its name, with errors that suggest the nearest known name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from dgpo.imports import SYNTAX as PATH_SYNTAX
from dgpo.imports import is_path

T = TypeVar("T")


def did_you_mean(word: object, known: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None) -> str:
    """', did you mean ...?' if a known name is similar enough, otherwise the empty string.

    Tried in this order: the alias of the word, the same word spelled with other dashes or
    capitals, a known name that begins with the whole word, one with the same letters in another order ("dpgo"), a
    known name with another typing error.

    Args:
        word: what was given.
        known: the known names.
        aliases: word, in lower case with underscores -> names for the same thing, of which the first known one counts.
    """
    names = {plain(name): name for name in known}
    asked = plain(word)
    of_alias = [name for name in (aliases or {}).get(asked, ()) if name in names.values()]
    # one or two letters begin too many names to be a hint
    begins = sorted((name for name in names if name.startswith(f"{asked}_")), key=len) if len(asked) > 2 else []
    # several may be equally similar; two letters exchanged are the commonest slip
    swapped = [name for name in names if sorted(name) == sorted(asked)]
    near = get_close_matches(asked, names, n=1, cutoff=_SIMILAR)
    exact = [asked] if asked in names else []
    found = of_alias or [names[name] for name in (*exact, *begins[:1], *swapped[:1], *near)]
    return f", did you mean {found[0]!r}?" if found else ""


def plain(word: object) -> str:
    """A name in lower case, with underscores for dashes, dots and blanks."""
    return re.sub(r"[-. ]+", "_", str(word).strip().lower())


_SIMILAR = 0.65
"""Similarity from which a word counts as a typing error; at 0.6 'model' would match 'delta'."""

SYNTAX = "NAME:FIELD=VALUE,FIELD=VALUE"
"""How to write a name with fields, wherever a name is accepted."""


def parse(kind: str, spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and fields of `"dgpo"`, `"dgpo:n=2,m=inf"`, `{"name": "dgpo", "n": 2}`, or of that mapping as JSON text.

    A value is None, true, false, inf, a number, or else text. The name may be an import path with a colon in it:
    `"package.module:Mine:n=2"`.

    Raises:
        ValueError: no name, a field without a name or a value, a field given twice, text in braces that is not JSON.
    """
    if isinstance(spec, str) and spec.strip().startswith("{"):
        try:
            # without the hook json.loads silently keeps the last of two equal keys
            spec = json.loads(spec, object_pairs_hook=lambda pairs: once(pairs, kind))
        except json.JSONDecodeError as error:
            raise ValueError(f"{kind} {spec!r} is not valid JSON ({error}); expected {SYNTAX}") from error
    if isinstance(spec, Mapping):
        fields = dict(spec)
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(
                f"{kind} {dict(spec)!r} has no 'name'; expected {{'name': NAME, FIELD: VALUE}} or {SYNTAX}"
            )
        return name, fields
    name, colon, given = str(spec).partition(":")
    # an import path has a colon of its own: its fields follow the second one
    attribute, another, rest = given.partition(":")
    if is_path(path := f"{name.strip()}:{attribute.strip()}"):
        name, colon, given = path, another, rest
    pairs = []
    for part in given.split(",") if colon else []:
        field, equals, value = (text.strip() for text in part.partition("="))
        if not (field and equals and value):
            if part == given and re.search(r"[^\w.: ]", name):  # a path of a file, or a module with a dash in it
                raise ValueError(f"{kind} {spec!r}: {name!r} is not a name; expected {SYNTAX} or {PATH_SYNTAX}")
            lacks = "value" if field else "field"
            raise ValueError(f"{kind}: {part.strip()!r} in {spec!r} has no {lacks}; expected {SYNTAX}")
        pairs.append((field, as_value(value)))
    return name.strip(), once(pairs, f"{kind} {spec!r}")


def written(name: str, made: object) -> str:
    """The text that `parse` reads: the name, and the fields of a dataclass that differ from their defaults."""
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    given = [f"{f.name}={getattr(made, f.name)}" for f in fields if getattr(made, f.name) != f.default]
    return ":".join([name, ",".join(given)] if given else [name])


def once(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """A dict of the pairs. Raises ValueError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{where}: {key!r} is given twice, as {found[key]!r} and as {value!r}")
        found[key] = value
    return found


def as_value(text: str) -> Any:
    """None, true, false, inf or a number where the text is one; else the text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    # JSON first, so that 2 stays an int
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)  # not valid JSON: .5, 2., +1
    except ValueError:
        return text


_WORDS = {"none": None, "null": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf}


def unknown(
    kind: str, registry: Mapping[str, object], name: str, elsewhere: Mapping[str, str] | None = None
) -> ValueError:
    """The error for a name that is not in the registry, with the nearest known one or what `elsewhere` says."""
    first, colon, field = name.partition(":")
    if colon and first in registry:
        return ValueError(f"{kind}: {field!r} in {name!r} has no value; expected {SYNTAX}")
    known = f"known: {', '.join(registry)}"
    if here := (elsewhere or {}).get(plain(name)):
        return ValueError(f"unknown {kind} {name!r}: here it is {here}; {known}")
    hint = did_you_mean(name, registry)
    if not hint and (first := re.split(r"[^\w-]", name.strip())[0]) in registry:
        return ValueError(f"unknown {kind} {name!r}; fields of {first!r} are written {SYNTAX}")
    return ValueError(f"unknown {kind} {name!r}{hint}; {known}")


def build(
    kind: str,
    registry: Mapping[str, type[T]],
    spec: str | Mapping[str, Any],
    fields: Mapping[str, Any],
    elsewhere: Mapping[str, str] | None = None,
) -> T:
    """`registry[name](**fields)`, with the fields of `spec` too (`parse`).

    Raises:
        ValueError: unknown name, unknown field or missing field; a field both in `spec` and in `fields`; what `parse`
            raises; whatever the class raises for a value.
    """
    name, written = parse(kind, spec)
    fields = once([*written.items(), *fields.items()], f"{kind} {name!r}")
    if name not in registry:
        raise unknown(kind, registry, name, elsewhere)
    cls = registry[name]
    declared = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = [field.name for field in declared]
    for given in fields:
        if given not in known:
            raise ValueError(
                f"{kind} {name!r} has no field {given!r}{did_you_mean(given, known)}; "
                f"its fields: {', '.join(known) or 'none'}"
            )
    for field in declared:
        if is_required(field) and field.name not in fields:
            raise ValueError(f"{kind} {name!r} needs {field.name!r}, which has no default")
    return cls(**fields)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
