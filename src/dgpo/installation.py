"""The requirements of an extra, whether they are installed in supported versions, and the command that installs them.

Version ranges are defined in `pyproject.toml`: they are read from it in a clone, whose installed metadata may be older,
and from the metadata of the package elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

PACKAGE = "dgpo"

DISTRIBUTIONS = {"yaml": "pyyaml", "hydra": "hydra-core", "antlr4": "antlr4-python3-runtime"}
"""Module -> its package, if that is not the same name with dashes."""


class WrongVersionError(ImportError):
    """A package is installed in a version that dgpo does not support."""


def hint(extra: str) -> str:
    """The command that installs an extra, from wherever this dgpo came from.

    From the clone or the file; by name, if it came from a package index; package by package, if its source is gone.
    """
    source = _source()
    if source is None:
        return f"pip install {' '.join(shlex.quote(line) for line in requirements(extra))}"
    return f"pip install {_quoted(f'{source}[{extra}]')}"


def requirements(extra: str) -> list[str]:
    """The requirements of an extra, such as `trl>=1.16,<1.17`, including those of the extras that it contains.

    Raises:
        KeyError: there is no such extra.
    """
    found: dict[str, None] = {}
    for line in _declared()[extra]:
        if own := re.fullmatch(rf"{PACKAGE}\[(.*)\]", line):
            for name in own[1].split(","):
                found.update(dict.fromkeys(requirements(name.strip())))
        else:
            found[line] = None
    return list(found)


def require(what: str, extra: str, *modules: str, imported: bool = False) -> None:
    """Raise unless all modules are installed, each in a version that the extra allows.

    Args:
        what: the beginning of the sentence, such as "the report draws with".
        extra: of `pyproject.toml`.
        modules: import names; the first that is missing or wrong is the one that the error is about.
        imported: they are, and it is their `__version__` that counts: the path may have led to another copy than the
            one whose metadata comes first. For packages that keep it right, which not all do.

    Raises:
        ModuleNotFoundError: a module is not installed.
        WrongVersionError: its version is out of the range.
    """
    for module in modules:
        if not is_installed(module):
            raise ModuleNotFoundError(f"{what} {module}, which is not installed: {hint(extra)}", name=module)
    if wrong := wrong_versions(extra, *modules, imported=imported):
        raise WrongVersionError(f"{what} {wrong[0]}")


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    # find_spec raises ValueError for a loaded module without a __spec__
    if sys.modules.get(module) is not None:
        return True
    # find_spec imports the parent packages of a dotted name, which may be missing
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def wrong_versions(extra: str, *modules: str, imported: bool = False) -> list[str]:
    """One text per module in a version that the extra does not allow: required, installed, and the command to fix it.

    `imported` as for `require`.
    """
    by_name = {_name_of(line): line for line in requirements(extra)}
    texts = []
    for module in modules:
        line = by_name.get(DISTRIBUTIONS.get(module, module.replace("_", "-")))
        if line is not None and (text := unsupported(line, module, imported=imported)) is not None:
            texts.append(text)
    return texts


def unsupported(requirement: str, module: str, *, imported: bool = False) -> str | None:
    """What is wrong with the version of a module under a requirement such as `skyrl>=0.3,<0.4`; None if nothing is.

    A package without metadata, on a path alone, is taken for right unless `imported` asks for its `__version__`, as for
    `require`.
    """
    # not at the top: `import dgpo` needs torch alone
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    version = (_loaded_version(module) if imported else None) or _installed_version(wanted.name)
    if not version or wanted.specifier.contains(version, prereleases=True):
        return None
    plain = f"{wanted.name}{_ordered(str(wanted.specifier))}"
    return f"{plain}, and {wanted.name} {version} is installed: pip install {shlex.quote(plain)}"


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    return {package: found for package in packages if (found := _installed_version(package)) is not None}


def _loaded_version(module: str) -> str | None:
    version = getattr(sys.modules.get(module), "__version__", None)
    return version if isinstance(version, str) else None


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ordered(specifier: str) -> str:
    """The lower bound first."""
    return ",".join(sorted(specifier.split(","), key=lambda part: part.startswith("<")))


def _name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def _declared() -> dict[str, list[str]]:
    """Extra -> its requirements."""
    clone = _clone()
    if clone is not None:
        project = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return dict(project["optional-dependencies"])
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(PACKAGE) or []:
        requirement, _, marker = line.partition(";")
        if extra := re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker):
            found.setdefault(extra[1], []).append(requirement.strip())
    return found


def _clone() -> Path | None:
    """The root of the source tree of this file; None for an installed copy."""
    root = Path(__file__).resolve().parents[2]
    return root if _is_source(root) else None


def _is_source(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    if not file.is_file():
        return False
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    return bool(project.get("name") == PACKAGE)


def _source() -> str | None:
    """What to give pip to install this dgpo again; None if nothing is known that would work."""
    place = _clone()
    if place is None:
        try:
            recorded = importlib.metadata.distribution(PACKAGE).read_text("direct_url.json")
        except importlib.metadata.PackageNotFoundError:
            return None
        if recorded is None:
            return PACKAGE  # PEP 610: there is a record of every source but an index
        url = urlparse(str(json.loads(recorded).get("url", "")))
        place = Path(url2pathname(url.path))
        if url.scheme != "file" or not (place.is_file() or _is_source(place)):
            return None
    return "." if place == Path.cwd() else str(place)


def _quoted(text: str) -> str:
    """Quoted for any shell: some expand brackets."""
    quoted = shlex.quote(text)
    return quoted if quoted.startswith("'") else f"'{quoted}'"
