"""The site that is built of the pages: no warning, no link that leads nowhere, and nothing wider than the window."""

from __future__ import annotations

import html
import importlib
import importlib.util
import inspect
import pydoc
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

import dgpo
from dgpo.objectives import OBJECTIVES
from forked import run_script

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


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
    "dgpo.comparison",
    "dgpo.correction",
    "dgpo.diagnostics",
    "dgpo.diagnostics.doctor",
    "dgpo.evaluation",
    "dgpo.fused",
    "dgpo.grading",
    "dgpo.kl",
    "dgpo.loss",
    "dgpo.objectives",
    "dgpo.objectives.conformance",
    "dgpo.objectives.frameworks",
    "dgpo.objectives.presets",
    "dgpo.objectives.table",
    "dgpo.regions",
    "dgpo.report",
    "dgpo.rewards",
    "dgpo.tasks",
    "dgpo.testing",
    "dgpo.tokens",
    "dgpo.training",
]


def public(module_name: str) -> dict[str, object]:
    """Full name -> function or class that a module offers, its own or in its __all__."""
    module = importlib.import_module(module_name)
    listed = getattr(module, "__all__", None)
    found: dict[str, object] = {}
    for name, value in vars(module).items():
        if not (inspect.isclass(value) or inspect.isfunction(value)) or name.startswith("_"):
            continue
        if name in listed if listed is not None else value.__module__ == module_name:
            found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


@pytest.mark.parametrize("module_name", MODULES)
def test_every_public_name_is_documented(site: Path, module_name: str) -> None:
    """By its full name, or by that of a package which it can be imported from."""
    pages = [site / "objectives.html", *(site / "api").glob("*.html")]
    documented = set(re.findall(r'id="(dgpo\.[\w.]+)"', "".join(page.read_text(encoding="utf-8") for page in pages)))
    for name, value in public(module_name).items():
        same_end = [other for other in documented if other.rpartition(".")[2] == name.rpartition(".")[2]]
        known = name in documented or any(pydoc.locate(other) is value for other in same_end)
        assert known, f"{name} is on no page of docs/api"


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_of_the_site_lead_somewhere(site: Path) -> None:
    """To a file, and to a place on it."""
    ids, links = {}, {}
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        ids[page] = set(re.findall(r'\bid="([^"]*)"', text))
        links[page] = {link for link in re.findall(r'href="([^"]*)"', text) if not re.match(r"[a-z]+:", link)}
    broken = []
    for page, found in links.items():
        for link in found:
            name, _, anchor = unquote(html.unescape(link)).partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            if not target.is_file() or (anchor and target in ids and anchor not in ids[target]):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []
    assert sum(map(len, links.values())) > 1000


BESIDE = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "recipes/README.md")),
    *sorted(page for name in ("studies", "benchmarks", "conformance", "tests") for page in (ROOT / name).rglob("*.md")),
]
"""Pages that are read in the repository, and not on the site."""


@pytest.mark.parametrize("page", BESIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        target = page.parent / name if name else page
        assert target.exists(), name
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name}#{anchor}"


# --- in the browser ---------------------------------------------------------------------------------------------------

TABLES = """() => [...document.querySelectorAll('article table.docutils')].map(table => {
    const box = table.closest('.table-wrapper');
    return [box !== null && getComputedStyle(box).overflowX === 'auto', box ? box.scrollWidth - box.clientWidth : 0,
            table.rows[0].innerText.replace(/\\s+/g, ' ')];
})"""
"""Of each table: whether it can scroll, how much wider than its place it is, and its head."""


WIDEST = ("index", "install", "objectives", "doctor", "evidence", "training", "config", "api/training")
"""Pages of every kind, with the widest tables."""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize(
    ("pages", "widths"),
    [
        pytest.param([f"{name}.html" for name in WIDEST], (390, 1280), id="widest"),
        pytest.param(None, (390, 1024, 1280, 1366, 1440), id="all", marks=pytest.mark.soak),
    ],
)
def test_pages_fit_the_window(site: Path, pages: list[str] | None, widths: tuple[int, ...]) -> None:
    """No page is wider than a phone or a laptop; at 1280 px every table fits, and at 390 px each scrolls by itself."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is missing")
    tables = 0
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True)
        window = browser.new_page()
        for name in pages or sorted(str(page.relative_to(site)) for page in site.rglob("*.html")):
            window.set_viewport_size({"width": widths[0], "height": 800})
            window.goto((site / name).as_uri())
            for width in widths:
                window.set_viewport_size({"width": width, "height": 800})
                assert window.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width} px"
                for scrolls, beyond, head in window.evaluate(TABLES):
                    assert scrolls, f"{name}: {head}"
                    assert width not in (1280, 1440) or beyond <= 0, f"{name} at {width} px: {beyond} px: {head}"
                    tables += 1
        browser.close()
    assert tables > 200
