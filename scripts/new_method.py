"""Write the two files of a new method to fill in: `make new-method NAME=my_method`.

They are `src/dgpo/objectives/NAME.py` and `tests/objectives/test_NAME.py`. Until both are filled in, the tests of the
method fail and say which formula is missing. See "Adding a method" in CONTRIBUTING.md.
"""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from pathlib import Path

from dgpo import objectives

ROOT = Path(__file__).resolve().parents[1]
USAGE = "usage: make new-method NAME=my_method (lower case letters, digits and underscores)"

METHOD = '''"""{cls}: what it is called, and by whom (arXiv ...)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dgpo.objectives.objective import Objective, Properties
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class {cls}(Objective):
    """What the weight does, in one line.

    With r the importance ratio::

        A < 0    w = ...
        else     w = r

    Source: the paper's equation; the authors' code, file and line. Deviations: ...
    """

    name = "{name}"
    papers = ()

    def weight(self, tokens: TokenBatch) -> Tensor:
        raise NotImplementedError("{source}: write the weight of {name}")

    def properties(self) -> Properties:
        raise NotImplementedError("{source}: declare the properties of {name}")
'''

TEST = '''"""{cls}: the closed form, and the settings that the common suites test."""

from __future__ import annotations

from typing import Any

from closed_forms import Method, by_region


def {name}_form(x: Any, q: Any, sign: int, **fields: Any) -> Any:
    """Of log r, log π_old, the sign of A and the fields: w, φ, and the sum of the absolute terms of φ."""
    raise NotImplementedError("{test}: write the formula of {name} a second time, from the paper")


METHODS = {{"{name}": Method(closed_form={name}_form)}}

test_closed_form = by_region(METHODS)
'''


def refusal(name: str, root: Path) -> str | None:
    """Why no method can have this name; None if one can."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or keyword.iskeyword(class_name(name)):
        return f"NAME={name!r} is not a name for a method and a module; {USAGE}"
    if name in objectives.OBJECTIVES:
        return f"the objective {name!r} exists: {objectives.OBJECTIVES[name].__module__}; choose another NAME"
    if name in objectives.ELSEWHERE:
        return f"{name!r} is known: here it is {objectives.ELSEWHERE[name]}; choose another NAME"
    source, test = (root / path for path in files(name))
    # pytest needs another name for every module of tests, whatever folder it is in
    for path in (source, *(root / "tests").rglob(test.name)):
        if path.exists():
            return f"{path.relative_to(root).as_posix()} exists; choose another NAME"
    # the package would see the new module or class under this name in place of what it uses itself
    for taken in (name, class_name(name)):
        if hasattr(objectives, taken) or hasattr(builtins, taken) or taken in ("Tensor", "TokenBatch"):
            return f"{taken!r} has a meaning in dgpo.objectives already; choose another NAME"
    return None


def class_name(name: str) -> str:
    """`my_method` -> `MyMethod`."""
    return "".join(word.capitalize() for word in name.split("_"))


def files(name: str) -> tuple[str, str]:
    """The paths of the two files below the root of the repository."""
    return f"src/dgpo/objectives/{name}.py", f"tests/objectives/test_{name}.py"


def main(argv: list[str], root: Path = ROOT) -> int:
    """Write the files. 2 if there is no such name or it is taken."""
    if len(argv) != 1 or not argv[0]:
        print(USAGE, file=sys.stderr)
        return 2
    (name,) = argv
    if (said := refusal(name, root)) is not None:
        print(said, file=sys.stderr)
        return 2
    source, test = files(name)
    for path, text in ((source, METHOD), (test, TEST)):
        (root / path).write_text(
            text.format(name=name, cls=class_name(name), source=source, test=test), encoding="utf-8"
        )
    print(
        f"Fill in {source} and {test}.\n"
        f"Then: .venv/bin/python -m pytest tests/objectives -k {name}\n"
        "And: make figures, and commit what it writes."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
