"""The documentation builds without a warning, its examples run, and what it states about the tree is so."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dgpo
from dgpo.objectives import OBJECTIVES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, python_blocks: Callable[[Path], list[str]]) -> None:
    """The blocks of a page in order, in one namespace; the examples assert what the text says."""
    namespace: dict[str, object] = {}
    for block in python_blocks(DOCS / page):
        exec(compile(block, page, "exec"), namespace)


def test_examples_are_there(python_blocks: Callable[[Path], list[str]]) -> None:
    counts = {page: len(python_blocks(DOCS / page)) for page in ("index.md", "normalisation.md", "objectives.md")}
    assert counts == {"index.md": 1, "normalisation.md": 2, "objectives.md": 1}


def test_every_page_is_in_the_toctree() -> None:
    toctree = re.search(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    assert toctree is not None
    listed = [line for line in toctree.group(1).split() if not line.startswith(":")]
    assert {f"{name}.md" for name in listed} >= set(PAGES) - {"index.md"}


def test_architecture_names_every_room(root: Path) -> None:
    """A module or folder that the page does not mention is a room that nobody decided on."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = Path(dgpo.__file__).parent
    rooms = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    rooms |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {room for room in rooms if f"`{room}`" not in text} == set()
    now, planned = text.split("Planned:")
    said = re.findall(r"`([a-z_]+(?:\.py|/))`", now.split("## The rooms")[1])
    assert {
        room for room in said if not (package / room).exists() and not (package / "objectives" / room).exists()
    } == set()
    assert "`fused/`" in planned


def test_docs_build_without_warnings(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation needs: pip install 'dgpo[docs]'")
    out = tmp_path / "html"
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*build, str(DOCS), str(out)], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    objectives = (out / "objectives.html").read_text(encoding="utf-8")
    for cls in OBJECTIVES.values():
        assert f'id="{cls.__module__}.{cls.__name__}"' in objectives, f"the page does not document {cls.__name__}"
    assert dgpo.__version__ in (out / "index.html").read_text(encoding="utf-8")
