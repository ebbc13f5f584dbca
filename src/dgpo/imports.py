"""Import what a user names in a configuration: `package.module:attribute`, also from the working directory."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from dgpo.files import one_line
from dgpo.warning import is_own

SYNTAX = "package.module:attribute"
_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_PATH = re.compile(rf"({_DOTTED}):({_DOTTED})|({_DOTTED})\.([^\W\d]\w*)")


def is_path(name: str) -> bool:
    """Whether a name is written as an import path: `package.module:attribute` or `package.module.attribute`."""
    return _PATH.fullmatch(name) is not None


def split(path: str) -> tuple[str, str]:
    """Module and attribute of an import path.

    Raises:
        ValueError: it is not written as one.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise ValueError(f"{path!r} is not an import path; expected {SYNTAX}")
    module, attribute, of_dotted, last = found.groups()
    return (module, attribute) if module else (of_dotted, last)


def imported(kind: str, path: str) -> Any:
    """What an import path names. The working directory is searched first, for modules beside a configuration.

    Args:
        kind: what is imported, for errors: "objective".
        path: `package.module:attribute` or `package.module.attribute`.

    Raises:
        ValueError: if it is not an import path, the module or attribute does not exist, or the module raises an error.
    """
    name, attribute = split(path)
    here = os.getcwd()
    # a console script has its own folder first on the path, not the working directory
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    # SystemExit too: a script without a main guard may call sys.exit
    except (Exception, SystemExit) as error:
        raise ValueError(f"cannot import the {kind} {path!r}: {_why(error, name, attribute, here)}") from error
    finally:
        sys.path.remove(here)
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ValueError(f"cannot import the {kind} {path!r}: {_origin(module)} has no {attribute!r}") from None
    return found


def loaded(path: str) -> Any:
    """What an import path names in a module that this process has imported already; None otherwise. Imports nothing.

    For paths from untrusted files.
    """
    name, attribute = split(path)
    found: Any = sys.modules.get(name)
    for part in attribute.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # getattr would call a module's __getattr__, which may import
    return found


def path_of(cls: type) -> str:
    """The import path of a class: `__main__:Mine` for a class of the script that runs."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _why(error: BaseException, module: str, attribute: str, here: str) -> str:
    # the module itself or a parent of it is missing, not something that it imports
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        if module.endswith(".py"):
            return f"a module is named without .py: write {module.removesuffix('.py')}:{attribute}"
        return f"there is no module {error.name!r} in the working directory {here!r} or among the installed packages"
    # the last line of somebody's own: an error may be raised by a library that it calls
    every = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    frames = [f for f in every if is_own(f.filename)] or every
    # the text of a SyntaxError has file and line in it
    where = "" if isinstance(error, SyntaxError) else f" ({frames[-1].filename}:{frames[-1].lineno})"
    advice = ""
    if isinstance(error, TypeError) and "non-frozen dataclass from a frozen" in str(error):
        advice = "; use @dataclass(frozen=True, kw_only=True)"
    return f"importing {module!r} raised {type(error).__name__}: {one_line(error)}{where}{advice}"


def _origin(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return f"the module {module.__name__!r}" + (f" ({file})" if file else "")
