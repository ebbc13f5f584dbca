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


@pytest.fixture
def weights_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/figures/weights.py as a module."""
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib: pip install 'dgpo[docs]'")
    spec = importlib.util.spec_from_file_location("weights_script", ROOT / "docs" / "figures" / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "weights_script", module)
    spec.loader.exec_module(module)
    return module
