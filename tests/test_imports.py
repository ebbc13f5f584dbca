"""Importing what a configuration names: from the working directory, in two spellings; what an error says."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from dgpo import objectives
from dgpo.imports import imported, is_path, loaded, path_of, split


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a:B", ("a", "B")),
        ("a.b:C", ("a.b", "C")),
        ("a.b:C.D", ("a.b", "C.D")),
        ("a.b.C", ("a.b", "C")),
        ("__main__:Mine", ("__main__", "Mine")),
    ],
)
def test_two_spellings(path: str, parts: tuple[str, str]) -> None:
    assert is_path(path)
    assert split(path) == parts


@pytest.mark.parametrize(
    "text", ["", "a", ":B", "a:", "a:b=2", "a b:C", "a..b", "a.b:", "1.5", "a/b.py:C", "a:f.<locals>.C"]
)
def test_what_is_no_import_path(text: str) -> None:
    assert not is_path(text)
    with pytest.raises(ValueError, match="is not an import path; expected package.module:attribute"):
        split(text)


def test_the_working_directory_is_searched_and_the_path_left_as_it_was(my_package: Path) -> None:
    path = list(sys.path)
    found = imported("objective", "my_package.my_module:MyObjective")
    assert (found.__name__, path_of(found)) == ("MyObjective", "my_package.my_module:MyObjective")
    assert imported("objective", "my_package.my_module.MyObjective") is found
    assert imported("reward", "math:fsum") is math.fsum
    assert sys.path == path


def test_only_what_is_imported_already_is_loaded(my_package: Path) -> None:
    assert loaded("my_package.my_module:MyObjective") is None
    assert "my_package" not in sys.modules
    found = imported("objective", "my_package.my_module:MyObjective")
    assert loaded("my_package.my_module:MyObjective") is found
    assert loaded("my_package.my_module:MyObjective.weight") is vars(found)["weight"]
    assert loaded("my_package.my_module:Other") is None


def test_a_lazy_attribute_of_a_module_is_not_asked_for(my_package: Path) -> None:
    """A module's own `__getattr__` may import anything, so a name out of a file does not reach it."""
    (my_package / "lazy.py").write_text("def __getattr__(name):\n    raise SystemExit(name)\n")
    with pytest.raises(SystemExit):
        imported("objective", "my_package.lazy:Anything")
    assert loaded("my_package.lazy:Anything") is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:X", "there is no module 'no_such_module' in the working directory"),
        ("my_package.other:X", "there is no module 'my_package.other' in the working directory"),
        ("my_package.my_module:Other", "my_module.py) has no 'Other'"),
        (
            "my_package.needs:X",
            "importing 'my_package.needs' raised ModuleNotFoundError: No module named 'surely_missing'",
        ),
        ("my_package.breaks:X", "importing 'my_package.breaks' raised ZeroDivisionError: division by zero"),
        ("my_package.wrong:X", "importing 'my_package.wrong' raised SyntaxError: "),
    ],
)
def test_errors_say_what_is_wrong(my_package: Path, path: str, said: str) -> None:
    (my_package / "needs.py").write_text("import surely_missing\n")
    (my_package / "breaks.py").write_text("\n1 / 0\n")
    (my_package / "wrong.py").write_text("def f(:\n")
    with pytest.raises(ValueError) as error:
        imported("objective", path)
    assert str(error.value).startswith(f"cannot import the objective {path!r}: ")
    assert said in str(error.value)
    if "breaks" in path:
        assert "breaks.py:2)" in str(error.value)


def test_an_error_says_what_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("halved_of_this_test.py").write_text(
        "from dataclasses import dataclass\nfrom dgpo.objectives import Objective\n\n"
        "@dataclass\nclass Halved(Objective):\n    def weight(self, tokens):\n        return tokens.ratio / 2\n"
    )
    Path("sound_of_this_test.py").write_text("")
    with pytest.raises(ValueError, match=r"without \.py: write sound_of_this_test:Halved$"):
        imported("objective", "sound_of_this_test.py:Halved")
    where = rf"\({tmp_path}/halved_of_this_test.py:4\); use @dataclass\(frozen=True, kw_only=True\)$"
    with pytest.raises(ValueError, match=where):
        imported("objective", "halved_of_this_test:Halved")
    for word, said in (("Halved", "module:Class, such as my_module:Halved$"), ("halved", "known: aspo, .*[a-z_]$")):
        with pytest.raises(ValueError, match=said):
            objectives.find(word)
