"""The steps of CONTRIBUTING.md under "Adding a method", performed as they are written on a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dgpo.objectives import OBJECTIVES

NAME = "importance"
SOURCE, TEST = f"src/dgpo/objectives/{NAME}.py", f"tests/objectives/test_{NAME}.py"
NOT_COPIED = (".git", ".venv*", "outputs", "build", "dist", "_build", "__pycache__", ".*_cache", ".hypothesis")


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    return folder


def run(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def make(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make` with the interpreter of this test in place of the repository's environment."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return run(copy, "make", *words, "READY=", f"BIN={Path(sys.executable).parent}")


def pytest_in(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(copy, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words)


def fill_in(copy: Path, python_blocks: Callable[[Path], list[str]]) -> None:
    """Step 2 and 3: the files of the text in place of those that `make new-method` wrote."""
    source, test = python_blocks(copy / "CONTRIBUTING.md")
    (copy / SOURCE).write_text(source, encoding="utf-8")
    (copy / TEST).write_text(test, encoding="utf-8")


def test_a_method_is_two_files(copy: Path, python_blocks: Callable[[Path], list[str]]) -> None:
    before = {path for path in copy.rglob("*") if path.is_file()}
    written = make(copy, "new-method", f"NAME={NAME}")
    assert written.returncode == 0, written.stderr
    new = {str(path.relative_to(copy)) for path in copy.rglob("*.py") if path not in before}
    assert new == {SOURCE, TEST}
    fill_in(copy, python_blocks)
    suites = ("tests/objectives/test_every_objective.py", "tests/diagnostics/doctor/test_rules.py")
    done = pytest_in(copy, TEST, *suites, "-k", NAME)
    assert done.returncode == 0, done.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 50


@pytest.mark.soak
def test_the_whole_suite_passes_with_a_new_method(copy: Path, python_blocks: Callable[[Path], list[str]]) -> None:
    """All five steps; then everything that knows the registry. Only generated files differ beside the two."""
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert make(copy, "new-method", f"NAME={NAME}").returncode == 0
    failed = pytest_in(copy, TEST)
    assert f"NotImplementedError: {SOURCE}: write the weight of {NAME}" in failed.stdout
    source, _ = python_blocks(copy / "CONTRIBUTING.md")
    (copy / SOURCE).write_text(source, encoding="utf-8")
    failed = pytest_in(copy, TEST)
    assert f"NotImplementedError: {TEST}: write the formula of {NAME} a second time" in failed.stdout
    fill_in(copy, python_blocks)
    drawn = make(copy, "figures")
    assert drawn.returncode == 0, drawn.stderr
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    changed = {str(path.relative_to(copy)) for path in after if after[path] != before.get(path)}
    assert changed == {
        SOURCE,
        TEST,
        "README.md",
        "docs/objectives.md",
        "docs/figures/weights.svg",
        f"docs/figures/objectives/{NAME}.svg",
        "src/dgpo/objectives/__init__.py",
        "conformance/vectors.json",
    }
    done = pytest_in(copy, "tests", "-m", "not soak", "--ignore=tests/docs/test_contributing.py")
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.fixture
def new_method(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/new_method.py as a module."""
    monkeypatch.syspath_prepend(root / "scripts")
    import new_method

    return new_method


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "usage: make new-method NAME=my_method"),
        ([""], "usage: make new-method NAME=my_method"),
        (["two", "names"], "usage: make new-method NAME=my_method"),
        (["my-method"], "NAME='my-method' is not a name for a method and a module; usage:"),
        (["MyMethod"], "NAME='MyMethod' is not a name"),
        (["2step"], "NAME='2step' is not a name"),
        (["lambda"], "NAME='lambda' is not a name"),
        (["../grpo"], "NAME='../grpo' is not a name"),
        (["grpo"], "the objective 'grpo' exists: dgpo.objectives.grpo; choose another NAME"),
        (["ppo"], "'ppo' is known: here it is 'grpo'; choose another NAME"),
        (["none"], "NAME='none' is not a name"),
        (["paper"], "src/dgpo/objectives/paper.py exists; choose another NAME"),
        (["properties"], "'Properties' has a meaning in dgpo.objectives already; choose another NAME"),
        (["find"], "'find' has a meaning in dgpo.objectives already; choose another NAME"),
        (["type"], "'type' has a meaning in dgpo.objectives already; choose another NAME"),
        (["tensor"], "'Tensor' has a meaning in dgpo.objectives already; choose another NAME"),
        (["table"], "src/dgpo/objectives/table.py exists; choose another NAME"),
        (["loss"], "tests/test_loss.py exists; choose another NAME"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_taken(
    new_method: ModuleType, argv: list[str], said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in (root / "src/dgpo/objectives").iterdir())
    assert new_method.main(argv) == 2
    assert capsys.readouterr().err.startswith(said)
    assert sorted(path.name for path in (root / "src/dgpo/objectives").iterdir()) == before


def test_the_example_is_not_in_the_registry() -> None:
    assert NAME not in OBJECTIVES
