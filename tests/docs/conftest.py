from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def python_blocks() -> Callable[[Path], list[str]]:
    """A function: the ```python blocks of a Markdown page, in order."""
    return lambda page: FENCE.findall(page.read_text(encoding="utf-8"))


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script below docs/ as a module."""
    name = Path(path).stem + "_script"
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    # the scripts import docs/figures/drawing.py
    monkeypatch.syspath_prepend(ROOT / "docs" / "figures")
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def weights_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/figures/weights.py as a module."""
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib: the extra docs")
    return script("figures/weights.py", monkeypatch)


@pytest.fixture
def hero_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/figures/hero.py as a module."""
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib: the extra docs")
    return script("figures/hero.py", monkeypatch)


@pytest.fixture
def growth_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/figures/growth.py as a module."""
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib: the extra docs")
    return script("figures/growth.py", monkeypatch)


@pytest.fixture
def objectives_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate_objectives.py as a module."""
    return script("generate_objectives.py", monkeypatch)


@pytest.fixture
def notebook_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate_notebook.py as a module."""
    pytest.importorskip("matplotlib", reason="the figures need matplotlib: the extra docs")
    return script("generate_notebook.py", monkeypatch)


@pytest.fixture
def readme_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate_readme.py as a module."""
    return script("generate_readme.py", monkeypatch)


@pytest.fixture
def reference_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/generate_reference.py as a module."""
    pytest.importorskip("matplotlib", reason="docs/figures/drawing.py needs matplotlib: the extra docs")
    return script("generate_reference.py", monkeypatch)
