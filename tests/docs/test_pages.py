"""The examples of the documentation run, and what it states about the tree is so; `test_site.py` builds it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dgpo

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for folder in (DOCS, DOCS / "tutorials")
    for page in folder.glob("*.md")
    if page.name != "objectives_head.md"  # a part of objectives.md
)
EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
"""A block of Python and what it prints, if that follows."""
CAPTIONS = ["Start", "Tutorials", "How-to", "Explanation", "Reference"]


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"tutorials/one_gradient.md"}))  # test_notebook.py runs it
def test_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page in order, in one namespace and an empty folder; the examples assert what the text says.

    A block whose first line is the path of a file is that file, too, for what comes after it. A block of text right
    after one of Python is what it prints.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    loaded = set(sys.modules)
    for block, output in EXAMPLE.findall((DOCS / page).read_text(encoding="utf-8")):
        if (path := re.match(r"# ([\w/]+\.py)\n", block)) is not None:
            Path(path[1]).parent.mkdir(exist_ok=True)
            Path(path[1]).write_text(block, encoding="utf-8")
            importlib.invalidate_caches()
        capsys.readouterr()
        exec(compile(block, page, "exec"), namespace)
        if output:
            assert capsys.readouterr().out == output
    for name in set(sys.modules) - loaded:
        if name.startswith("my_"):
            del sys.modules[name]  # not by monkeypatch, which would put it back


def test_examples_are_there(python_blocks: Callable[[Path], list[str]]) -> None:
    counts = {page: len(python_blocks(DOCS / page)) for page in ("index.md", "normalisation.md", "objectives.md")}
    assert counts == {"index.md": 1, "normalisation.md": 2, "objectives.md": 1}


def test_every_page_is_in_one_toctree_of_the_index() -> None:
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [re.findall(r"^:caption: (.+)$", tree, re.MULTILINE) for tree in trees] == [[one] for one in CAPTIONS]
    listed = [f"{line}.md" for tree in trees for line in tree.split("\n") if line and not line.startswith(":")]
    assert sorted(listed) == sorted(set(PAGES) - {"index.md"})


def test_architecture_names_every_module(root: Path) -> None:
    """Every top-level module and package is on the page."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = Path(dgpo.__file__).parent
    rooms = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    rooms |= {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {room for room in rooms if f"`{room}`" not in text} == set()
    now = text.split("## Packages and modules")[1].split("Outside the package")[0]
    name = r"`([a-z_]+(?:\.py|/))`"
    assert {room for room in re.findall(name, now) if not list(package.rglob(room.rstrip("/")))} == set()
