"""The registry of objectives is what the modules of the package declare."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo import objectives
from dgpo.objectives import OBJECTIVES, Objective

PACKAGE = Path(objectives.__file__).parent
METHOD = """
from dataclasses import dataclass
from dgpo.objectives.grpo import GRPO

@dataclass(frozen=True, kw_only=True)
class {cls}(GRPO):
    name = {name!r}

@dataclass(frozen=True, kw_only=True)
class Helper(GRPO):
    eps_low: float = 0.1
"""


def declared() -> dict[str, str]:
    """Name -> class, read from the source of the modules without an import."""
    found = {}
    for file in PACKAGE.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for statement in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "name":
                    found[ast.literal_eval(statement.value)] = node.name
    return found


def test_every_class_with_a_name_is_registered_and_no_other() -> None:
    assert {name: cls.__name__ for name, cls in OBJECTIVES.items()} == declared()
    assert list(OBJECTIVES) == sorted(OBJECTIVES)
    assert len(OBJECTIVES) >= 20
    assert all(cls.name == name for name, cls in OBJECTIVES.items())


def test_every_class_is_an_attribute_of_the_package() -> None:
    for cls in OBJECTIVES.values():
        assert getattr(objectives, cls.__name__) is cls
        assert cls.__name__ in objectives.__all__
    assert not hasattr(objectives, "AdaptiveClip"), "a base without a name"
    with pytest.raises(ImportError, match="cannot import name 'DGOP'"):
        from dgpo.objectives import DGOP  # noqa: F401


def test_a_name_brought_from_elsewhere_belongs_to_one_method() -> None:
    words = [word for cls in OBJECTIVES.values() for word in cls.aliases]
    assert len(words) == len(set(words))
    assert not set(words) & set(OBJECTIVES)
    assert set(words) < set(objectives.ELSEWHERE)


def run_with(tmp_path: Path, modules: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
    """The program with these modules in the package, whose path is extended by a folder."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    program = (
        "import pkgutil\n"
        "found = pkgutil.iter_modules\n"
        f"folder = {str(tmp_path)!r}\n"
        "def more(path, prefix=''):\n"
        "    if prefix == 'dgpo.objectives.' and folder not in path:\n"
        "        path.append(folder)\n"
        "    return found(path, prefix)\n"
        "pkgutil.iter_modules = more\n" + program
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


def test_a_new_module_is_registered_without_an_edit(tmp_path: Path) -> None:
    program = (
        "from dgpo.objectives import OBJECTIVES, Mine, make\n"
        "assert make('mine:eps_low=0.1') == Mine(eps_low=0.1) and Mine.papers == ()\n"
        "print(list(OBJECTIVES).index('mine'), 'Helper' in dir())\n"
    )
    done = run_with(tmp_path, {"mine": METHOD.format(cls="Mine", name="mine")}, program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(sorted([*OBJECTIVES, "mine"]).index("mine")), "False"]


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    done = run_with(tmp_path, {"mine": METHOD.format(cls="Mine", name="grpo")}, "import dgpo.objectives")
    assert done.returncode == 1
    assert "dgpo.objectives.grpo.GRPO and dgpo.objectives.mine.Mine both declare the name 'grpo'" in done.stderr


def test_a_class_outside_the_package_is_not_registered_by_its_name() -> None:
    class Mine(objectives.GRPO):
        name = "mine"

    assert issubclass(Mine, Objective)
    assert "mine" not in OBJECTIVES
