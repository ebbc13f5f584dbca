"""The documentation builds without a warning, its examples run, and what it states about the tree is so."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dgpo
from dgpo.objectives import OBJECTIVES
from forked import run_script

DOCS = Path(__file__).resolve().parents[2] / "docs"
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
            monkeypatch.delitem(sys.modules, name)


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a warning fails the build."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation needs: the extra docs")
    folder = tmp_path_factory.mktemp("site")
    build = ["-W", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees"]
    sphinx = importlib.util.find_spec("sphinx.__main__")
    assert sphinx is not None
    assert sphinx.origin is not None
    done = run_script(Path(sphinx.origin), *build, DOCS, folder / "html")
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_docs_build_without_warnings(site: Path) -> None:
    objectives = (site / "objectives.html").read_text(encoding="utf-8")
    for cls in OBJECTIVES.values():
        assert f'id="{cls.__module__}.{cls.__name__}"' in objectives, f"the page does not document {cls.__name__}"
    assert dgpo.__version__ in (site / "index.html").read_text(encoding="utf-8")


MODULES = [
    "dgpo",
    "dgpo.advantages",
    "dgpo.aggregation",
    "dgpo.correction",
    "dgpo.kl",
    "dgpo.loss",
    "dgpo.objectives",
    "dgpo.objectives.conformance",
    "dgpo.objectives.frameworks",
    "dgpo.objectives.presets",
    "dgpo.objectives.table",
    "dgpo.regions",
    "dgpo.tokens",
]


def public(module_name: str) -> set[str]:
    """Full names of the functions and classes that a module of the core offers, its own or in its __all__."""
    module = importlib.import_module(module_name)
    listed = getattr(module, "__all__", None)
    found = set()
    for name, value in vars(module).items():
        if not (inspect.isclass(value) or inspect.isfunction(value)) or name.startswith("_"):
            continue
        if name in listed if listed is not None else value.__module__ == module_name:
            found.add(f"{value.__module__}.{value.__qualname__}")
    return found


@pytest.mark.parametrize("module_name", MODULES)
def test_every_public_name_of_the_core_is_documented(site: Path, module_name: str) -> None:
    """By its full name, or by the package that it is imported from."""
    pages = [site / "objectives.html", *(site / "api").glob("*.html")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    documented = set(re.findall(r'id="(dgpo\.[\w.]+)"', text))
    for name in public(module_name):
        parents = {".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)}
        last = name.rpartition(".")[2]
        assert any(f"{parent}.{last}" in documented for parent in parents), f"{name} is on no page"
