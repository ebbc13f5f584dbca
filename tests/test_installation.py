"""Versions that are supported, and hints that lead somewhere: in a clone, from a file, and package by package."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dgpo import installation
from dgpo.installation import WrongVersionError, hint, require, requirements, unsupported, wrong_versions

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Package -> the version that is claimed to be installed."""
    claimed: dict[str, str] = {}
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: claimed[name] if name in claimed else real(name))
    return claimed


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were a copy in site-packages."""
    monkeypatch.setattr(installation, "_clone", lambda: None)


# --- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", EXTRAS)
def test_in_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert hint(extra) == f"pip install '{ROOT}[{extra}]'"
    monkeypatch.chdir(ROOT)
    assert hint(extra) == f"pip install '.[{extra}]'"


def test_from_where_pip_took_it(monkeypatch: pytest.MonkeyPatch, installed: None, tmp_path: Path) -> None:
    clone, wheel = tmp_path / "a clone", tmp_path / "dgpo-1.0-py3-none-any.whl"
    clone.mkdir()
    (clone / "pyproject.toml").write_text('[project]\nname = "dgpo"\n')
    wheel.write_bytes(b"")

    for place in (clone, wheel):
        came_from(monkeypatch, f'{{"url": "{place.as_uri()}", "dir_info": {{}}}}')
        assert hint("math") == f"pip install '{place}[math]'"
    for gone in ((tmp_path / "gone").as_uri(), tmp_path.as_uri(), "https://example.org/dgpo.whl"):
        came_from(monkeypatch, f'{{"url": "{gone}"}}')
        assert hint("math").startswith("pip install 'math-verify[")


def came_from(monkeypatch: pytest.MonkeyPatch, recorded: str | None) -> None:
    """As if pip had recorded this when it installed dgpo."""

    class Distribution:
        requires = METADATA

        @staticmethod
        def read_text(name: str) -> str | None:
            assert name == "direct_url.json"
            return recorded

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution)


def test_from_an_index(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    """Pip records the source of everything but that."""
    came_from(monkeypatch, None)
    assert hint("train") == "pip install 'dgpo[train]'"


def test_package_by_package(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    monkeypatch.setattr(installation, "_source", lambda: None)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: METADATA)
    assert hint("train") == "pip install 'math-verify[antlr4-13-2]<0.10,>=0.9' 'pyarrow>=15' 'trl<1.17,>=1.16'"
    assert requirements("all") == [
        "math-verify[antlr4-13-2]<0.10,>=0.9",
        "pyarrow>=15",
        "trl<1.17,>=1.16",
        "openai>=2.0",
    ]


METADATA = [
    "torch>=2.6",
    *("dgpo[train]; extra == 'all'", "openai>=2.0; extra == 'all'"),
    *("math-verify[antlr4-13-2]<0.10,>=0.9; extra == 'math'", "pyarrow>=15; extra == 'report'"),
    *("dgpo[math,report]; extra == 'train'", "trl<1.17,>=1.16; extra == 'train'", 'pyarrow>=15; extra == "train"'),
]


def test_no_hint_is_written_out_by_hand() -> None:
    """`pip install 'dgpo[...]'` leads nowhere while no index has the package."""
    folders = [ROOT / name for name in ("src", "docs", "recipes", "studies", "benchmarks")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".md", ".sh", ".yaml")]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    dead = re.compile(r"""pip3? install\b[^\n`]*[\s'"]dgpo(\[|['"\s]|$)""", re.MULTILINE)
    assert dead.search("pip install -U 'verl[vllm]==0.9.1' 'dgpo[verl]'")
    assert dead.search("pip install dgpo")
    assert [str(file) for file in files if dead.search(file.read_text(encoding="utf-8"))] == []


def test_every_command_to_install_something_is_written_in_one_place() -> None:
    """Any other would say where dgpo itself comes from, and be wrong in a clone, in a wheel or from an index."""
    package = ROOT / "src" / "dgpo"
    found = {
        (file.relative_to(package).as_posix(), line.strip())
        for file in package.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install\b", line)
    }
    others = {(file, line) for file, line in found if file != "installation.py"}
    assert {file for file, line in others} == {"cli/errors.py", "engines/verl_doctor.py"}
    assert all("dgpo" not in line for _, line in others)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "module", "extra", "version", "needed"),
    [
        ("torch", "torch", "train", "2.6.0", "torch>=2.7"),
        ("torch", "torch", "eval", "2.6.0+cu124", "torch>=2.7"),
        ("trl", "trl", "train", "1.13.0", "trl>=1.16,<1.17"),
        ("trl", "trl", "train", "1.17.0", "trl>=1.16,<1.17"),
        ("transformers", "transformers", "train", "4.57.1", "transformers>=5.10"),
        ("transformers", "transformers", "eval", "4.57.1", "transformers>=5.10"),
        ("datasets", "datasets", "train", "3.6.0", "datasets>=4.7"),
        ("math-verify", "math_verify", "math", "0.10.0", "math-verify>=0.9,<0.10"),
        ("math-verify", "math_verify", "math", "0.8.0", "math-verify>=0.9,<0.10"),
        ("pyarrow", "pyarrow", "report", "14.0.2", "pyarrow>=15"),
        ("pyyaml", "yaml", "train", "5.4", "pyyaml>=6"),
        ("plotly", "plotly", "report", "5.24.1", "plotly>=6"),
    ],
)
def test_a_version_out_of_range(
    versions: dict[str, str], package: str, module: str, extra: str, version: str, needed: str
) -> None:
    versions[package] = version
    said = f"{needed}, and {package} {version} is installed: pip install '{needed}'"
    assert wrong_versions(extra, module) == [said]
    with pytest.raises(WrongVersionError, match=re.escape(f"this needs {said}")):
        require("this needs", extra, module)


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3", "1.16.1.dev0", "1.16.0+local"])
def test_a_version_in_range(versions: dict[str, str], version: str) -> None:
    versions["trl"] = version
    assert wrong_versions("train", "trl") == []
    require("this needs", "train", "trl")


def test_what_is_installed_here_is_supported() -> None:
    modules = [installation.DISTRIBUTIONS.get(name, name) for name in ("trl", "transformers", "datasets", "pyarrow")]
    assert wrong_versions("train", *modules) == []


def test_a_package_on_a_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without metadata nothing is known, unless its `__version__` is asked for."""

    class Module:
        __version__ = "0.2"

    monkeypatch.setitem(sys.modules, "no_such_module", Module)  # type: ignore[misc]
    assert unsupported("no-such-package>=0.3,<0.4", "no_such_module") is None
    said = str(unsupported("no-such-package>=0.3,<0.4", "no_such_module", imported=True))
    assert "and no-such-package 0.2 is installed" in said


def test_the_copy_that_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts where that is asked for: reasoning-gym 0.1.25 calls itself 0.1.19."""
    import pyarrow

    monkeypatch.setattr(pyarrow, "__version__", "14.0.0")
    said = "pyarrow>=15, and pyarrow 14.0.0 is installed: pip install 'pyarrow>=15'"
    assert wrong_versions("report", "pyarrow", imported=True) == [said]
    assert wrong_versions("report", "pyarrow") == []


def test_a_missing_module_is_named_with_the_hint() -> None:
    with pytest.raises(ModuleNotFoundError) as error:
        require("this draws with", "report", "no_such_module")
    assert str(error.value) == f"this draws with no_such_module, which is not installed: {hint('report')}"
    assert error.value.name == "no_such_module"


OLD = """
import importlib.metadata, sys
real = importlib.metadata.version
importlib.metadata.version = lambda name: "1.13.0" if name == "trl" else real(name)
from dgpo.cli.main import run
for command in ("train", "demo", "objectives", "doctor"):
    try:
        print(command, run([command, "--help"]), file=sys.stderr)
    except SystemExit as stop:
        print(command, stop.code, file=sys.stderr)
try:
    import dgpo.training
except ImportError as error:
    print("import:", error, file=sys.stderr)
assert "trl" not in sys.modules
"""


COPY = """
import sys, types
sys.modules["trl"] = copy = types.ModuleType("trl")
copy.__version__ = "1.13.0"
try:
    import dgpo.training
except ImportError as error:
    print(error)
"""


def test_an_old_copy_of_trl_that_comes_first_on_the_path() -> None:
    done = subprocess.run([sys.executable, "-c", COPY], capture_output=True, text=True, check=True, timeout=120)
    said = "dgpo.training needs trl>=1.16,<1.17, and trl 1.13.0 is installed: pip install 'trl>=1.16,<1.17'"
    assert done.stdout.strip() == said


def test_an_old_trl_is_said_before_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = "needs trl>=1.16,<1.17, and trl 1.13.0 is installed: pip install 'trl>=1.16,<1.17'"
    lines = done.stderr.splitlines()
    for command in ("train", "demo"):
        assert f"dgpo {command}: error: {said}" in lines
        assert f"{command} 2" in lines
    assert {"objectives 0", "doctor 0", f"import: dgpo.training {said}"} <= set(lines)


def test_versions_are_of_installed_packages() -> None:
    found = installation.versions("torch", "no-such-package-of-anybody")
    assert found == {"torch": importlib.metadata.version("torch")}
