"""The checks of a release that need no build: versions agree, the archives are complete, every dependency is pinned."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import dgpo
from dgpo.installation import requirements

VERSION = dgpo.__version__


@pytest.fixture
def check(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/release_check.py as a module."""
    monkeypatch.syspath_prepend(root / "scripts")
    import release_check

    return release_check


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A repository of the files that have the version in them."""
    for name in ("src/dgpo/__init__.py", "CHANGELOG.md", "CITATION.cff", "README.md", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_version_is_written_in_one_place_and_the_others_agree(check: ModuleType) -> None:
    assert check.check_versions() == check.version() == VERSION


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "src/dgpo/__init__.py",
            f'"{VERSION}"',
            '"9.8.7"',
            f"CHANGELOG.md: the newest version is {VERSION}; expected 9",
        ),
        ("CHANGELOG.md", f"## [{VERSION}]", "## [9.8.7]", "CHANGELOG.md: the newest version is 9.8.7; expected"),
        ("CITATION.cff", f"version: {VERSION}", "version: 9.8.7", "CITATION.cff: version is 9.8.7; expected"),
        (
            "README.md",
            f"version = {{{VERSION}}}",
            "version = {9.8.7}",
            "README.md: the BibTeX entry has version 9.8.7; exp",
        ),
        ("src/dgpo/__init__.py", "__version__ =", "__VERSION__ =", "has no line __version__"),
    ],
)
def test_versions_that_differ(check: ModuleType, copy: Path, name: str, old: str, new: str, said: str) -> None:
    change(copy / name, old, new)
    with pytest.raises(check.Wrong) as wrong:
        check.check_versions(copy)
    assert said in str(wrong.value)


def test_a_tag_needs_a_date_and_the_address_of_the_repository(check: ModuleType, copy: Path) -> None:
    with pytest.raises(check.Wrong, match=f"the tag is 0.0.1; expected v{VERSION}"):
        check.check_versions(copy, "0.0.1")
    changelog = (copy / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    heading = next(line for line in changelog if line.startswith(f"## [{VERSION}]"))
    change(copy / "CHANGELOG.md", heading, f"## [{VERSION}]")
    with pytest.raises(check.Wrong, match="has no date"):
        check.check_versions(copy, f"v{VERSION}")
    change(copy / "CHANGELOG.md", f"## [{VERSION}]", f"## [{VERSION}] - 2026-12-01")
    with pytest.raises(
        check.Wrong, match=r"CITATION\.cff: expected a line date-released: 2026-12-01, the date in CHANGE"
    ):
        check.check_versions(copy, f"v{VERSION}")
    change(copy / "CITATION.cff", f"version: {VERSION}\n", f"version: {VERSION}\ndate-released: 2026-12-01\n")
    file = copy / "pyproject.toml"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("Repository =")]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(check.Wrong, match="has no Repository"):
        check.check_versions(copy, f"v{VERSION}")
    urls = "\n".join(f'{name} = "https://example.org/{name}"' for name in ("Repository", "Documentation", "Issues"))
    kept = [line for line in lines if not line.startswith(("Documentation =", "Issues ="))]
    file.write_text("\n".join(kept).replace("[project.urls]", f"[project.urls]\n{urls}"), encoding="utf-8")
    assert check.check_versions(copy, f"v{VERSION}") == VERSION


def archives(dist: Path, root: Path, *, without: str = "", beside: str = "") -> None:
    """A wheel and a source distribution with the right names, of empty files."""
    dist.mkdir()
    package = [path for path in (root / "src/dgpo").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = [path.relative_to(root / "src").as_posix() for path in package]
    with zipfile.ZipFile(dist / f"dgpo-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name in [*names, f"dgpo-{VERSION}.dist-info/METADATA", *filter(None, [beside])]:
            if name != without:
                wheel.writestr(name, "")
    top = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
    with tarfile.open(dist / f"dgpo-{VERSION}.tar.gz", "w:gz") as source:
        for name in [*top, *(f"src/{name}" for name in names)]:
            if name != without:
                source.addfile(tarfile.TarInfo(f"dgpo-{VERSION}/{name}"), io.BytesIO())


def test_complete_archives(check: ModuleType, root: Path, tmp_path: Path) -> None:
    archives(tmp_path / "dist", root)
    assert check.built(tmp_path / "dist", VERSION) == tmp_path / "dist" / f"dgpo-{VERSION}-py3-none-any.whl"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"without": "dgpo/py.typed"}, r"\.whl lacks dgpo/py\.typed"),
        ({"without": "LICENSE"}, r"\.tar\.gz lacks LICENSE"),
        ({"beside": "tests/test_loss.py"}, "holds tests beside the package"),
    ],
)
def test_archives_that_are_not(
    check: ModuleType, root: Path, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    archives(tmp_path / "dist", root, **changed)
    with pytest.raises(check.Wrong, match=said):
        check.built(tmp_path / "dist", VERSION)
    (tmp_path / "dist" / "dgpo-0.0.1.tar.gz").touch()
    with pytest.raises(check.Wrong, match=r"holds dgpo-0\.0\.1\.tar\.gz, .*; expected"):
        check.built(tmp_path / "dist", VERSION)


def test_the_examples_that_a_release_runs(check: ModuleType, root: Path) -> None:
    alone, trained = check.example("docs/quickstart.md"), check.example("README.md")
    compile(alone, "loss.py", "exec")
    compile(trained, "first.py", "exec")
    assert "trl" not in alone
    assert "dgpo.training" not in alone
    assert "DGPOTrainer" in trained
    with pytest.raises(check.Wrong, match="LICENSE has no Python example"):
        check.example("LICENSE")


def test_what_is_wrong_is_one_line(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["versions", "v9.8.7"]) == 1
    assert capsys.readouterr().err == f"release-check: the tag is v9.8.7; expected v{VERSION}, as in __init__.py\n"
    assert check.main(["versions"]) == 0
    assert capsys.readouterr().out == f"dgpo {VERSION}\n"


def test_whatever_the_package_may_need_is_pinned(root: Path) -> None:
    """`make setup` and `make release-check` install the same versions, whenever they run."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    pinned = {name_of(line) for line in lines}
    assert len(pinned) == len(lines)
    core = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    wanted = [*core, *requirements("all"), *requirements("docs"), *requirements("dev")]
    assert len(wanted) > 30
    assert {name_of(line) for line in wanted} - pinned == set()


def name_of(requirement: str) -> str:
    """The normalised name of a package."""
    return re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-")
