"""Objectives from outside this package: by import path, and by the names that installed packages give theirs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points

from dgpo.files import one_line
from dgpo.imports import SYNTAX, imported, loaded
from dgpo.objectives.objective import Objective

GROUP = "dgpo.objectives"
"""Entry point group in which a package publishes objectives: `mine = "my_package.my_module:MyObjective"`."""


def by_path(path: str) -> type[Objective]:
    """The objective of an import path. Executes its module, and searches the working directory for it first.

    Raises:
        ValueError: if it cannot be imported, or is not a frozen dataclass that inherits from `Objective`.
    """
    return checked(imported("objective", path), path)


def if_loaded(path: str) -> type[Objective] | None:
    """The objective of an import path whose module was imported already; None otherwise. Executes nothing."""
    try:
        return checked(loaded(path), path)
    except ValueError:
        return None


def published() -> dict[str, EntryPoint]:
    """Name -> entry point of every objective that an installed package publishes. Imports none of them."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def of_package(entry: EntryPoint, taken: Container[str] = ()) -> type[Objective]:
    """The objective that an entry point names.

    Args:
        entry: of `published`.
        taken: names of this library, which no package may use.

    Raises:
        ValueError: if its name is taken, importing it raises an error, or it is not an objective.
    """
    where = f"{entry.name!r} of the package {entry.dist.name if entry.dist else '?'} (entry point {entry.value!r})"
    if entry.name in taken:
        raise ValueError(f"objective {where}: dgpo has an objective of this name, which is used; expected another name")
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"objective {where} cannot be imported: {type(error).__name__}: {one_line(error)}; expected {SYNTAX}"
        ) from error
    return checked(found, where)


def checked(found: object, where: str) -> type[Objective]:
    """`found`, if it is the class of an objective that can be made from fields.

    Raises:
        ValueError: if it is something else; the error says what was expected.
    """
    if not isinstance(found, type):
        kind = "instance" if isinstance(found, Objective) else type(found).__name__
        raise ValueError(f"objective {where}: got an object ({kind}); expected a class that inherits from Objective")
    if not issubclass(found, Objective):
        raise ValueError(
            f"objective {where}: the class {found.__name__} does not inherit from dgpo.objectives.Objective"
        )
    # a subclass of a dataclass counts as one for `dataclasses`, although its own annotations are not fields
    parameters = found.__dict__.get("__dataclass_params__")
    if not dataclasses.is_dataclass(found) or parameters is None or not parameters.frozen:
        raise ValueError(
            f"objective {where}: the class {found.__name__} is not a frozen dataclass; decorate it with "
            "@dataclass(frozen=True, kw_only=True)"
        )
    if fixed := [field.name for field in dataclasses.fields(found) if not field.init]:
        raise ValueError(
            f"objective {where}: the class {found.__name__} has fields with init=False ({', '.join(fixed)}); a run is "
            "recorded and resumed by its fields, so each has to be an argument"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ValueError(f"objective {where}: the class {found.__name__} does not define {missing}")
    return found
