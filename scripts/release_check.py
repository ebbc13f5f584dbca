"""Checks of a release: `versions [TAG]` before it is built, `try` of the built wheel in an empty environment.

`make release-check` calls both. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UPDATES = 8
"""Optimiser updates of the demo that is tried: what is checked is that it runs."""


class Wrong(Exception):
    """What stands in the way of the release, as one line."""


def version(root: Path = ROOT) -> str:
    """The version, from the one place where it is written."""
    found = re.search(r'^__version__ = "(.+)"$', (root / "src/dgpo/__init__.py").read_text(encoding="utf-8"), re.M)
    if found is None:
        raise Wrong('src/dgpo/__init__.py has no line __version__ = "..."')
    return found[1]


def check_versions(root: Path = ROOT, tag: str | None = None) -> str:
    """The version, if changelog, citation, BibTeX entry and tag have it too.

    A tag also needs a dated section of the changelog, the same date in the citation, and the address of the repository
    in the metadata.

    Raises:
        Wrong: one of them differs.
    """
    ours = version(root)
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\](?: - (\S+))?", changelog, re.M)
    if newest is None or newest[1] != ours:
        raise Wrong(f"CHANGELOG.md: the newest version is {newest and newest[1]}; expected {ours}, as in __init__.py")
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    if cited is None or cited[1] != ours:
        raise Wrong(f"CITATION.cff: version is {cited and cited[1]}; expected {ours}, as in __init__.py")
    entry = re.search(r"@software\{dgpo,.*?version = \{(.+?)\}", (root / "README.md").read_text(encoding="utf-8"), re.S)
    if entry is None or entry[1] != ours:
        raise Wrong(f"README.md: the BibTeX entry has version {entry and entry[1]}; expected {ours}, as in __init__.py")
    if tag is None:
        return ours
    if tag != f"v{ours}":
        raise Wrong(f"the tag is {tag}; expected v{ours}, as in __init__.py")
    if newest[2] is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", newest[2]):
        raise Wrong(f"CHANGELOG.md: [{ours}] has no date; expected ## [{ours}] - YYYY-MM-DD")
    if f"\ndate-released: {newest[2]}\n" not in (root / "CITATION.cff").read_text(encoding="utf-8"):
        raise Wrong(f"CITATION.cff: expected a line date-released: {newest[2]}, the date in CHANGELOG.md")
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    for name in ("Repository", "Documentation", "Issues"):
        if name not in urls:
            raise Wrong(f"pyproject.toml: [project.urls] has no {name}; PyPI shows it, and it cannot be added later")
    return ours


def built(dist: Path, ours: str) -> Path:
    """The wheel, if `dist` has it and the source distribution and nothing else, both complete.

    Raises:
        Wrong: a file is missing, there is another one, or one that does not belong into them.
    """
    wheel, source = dist / f"dgpo-{ours}-py3-none-any.whl", dist / f"dgpo-{ours}.tar.gz"
    there = {path.name for path in dist.iterdir()}
    if there != {wheel.name, source.name}:
        raise Wrong(f"{dist} holds {', '.join(sorted(there)) or 'nothing'}; expected {wheel.name} and {source.name}")
    package = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/dgpo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    if missing := sorted(package - packed):
        raise Wrong(f"{wheel.name} lacks {', '.join(missing[:5])}")
    if foreign := sorted({name.split("/")[0] for name in packed} - {"dgpo", f"dgpo-{ours}.dist-info"}):
        raise Wrong(f"{wheel.name} holds {', '.join(foreign)} beside the package")
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", *(f"src/{name}" for name in package)}
    if missing := sorted(wanted - names):
        raise Wrong(f"{source.name} lacks {', '.join(missing[:5])}")
    return wheel


def example(page: str) -> str:
    """The first Python example of a page: README.md trains with TRL, docs/quickstart.md needs torch alone."""
    found = re.search(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    if found is None:
        raise Wrong(f"{page} has no Python example")
    return found[1]


def try_it(wheel: Path) -> None:
    """Install the wheel into an empty environment outside the repository, and run what the README shows first.

    With the versions in constraints.txt, so that what somebody else releases does not stand in the way.

    Raises:
        Wrong: a command fails; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "empty", with_pip=True)
        scripts = folder / "empty" / ("Scripts" if os.name == "nt" else "bin")
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment = kept | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

        def run(*command: object, **more: str) -> str:
            words = [str(word) for word in command]
            print("+", " ".join(Path(word).name if word.startswith(name) else word for word in words), flush=True)
            done = subprocess.run(
                words, cwd=folder, env=environment | more, capture_output=True, text=True, encoding="utf-8", check=False
            )
            if done.returncode:
                raise Wrong(f"{words[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
            return done.stdout

        pip = (scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        pip = (*pip, "--constraint", ROOT / "constraints.txt")
        # the core first: it needs torch and nothing else
        run(*pip, wheel)
        if (said := run(scripts / "dgpo", "--version").strip()) != f"dgpo {version()}":
            raise Wrong(f"dgpo --version prints {said!r}; expected dgpo {version()}")
        run(scripts / "dgpo", "objectives", "dgpo")
        (folder / "loss.py").write_text(example("docs/quickstart.md"), encoding="utf-8")
        run(scripts / "python", "loss.py")
        run(*pip, f"{wheel}[train]")
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        run(scripts / "dgpo", "demo", "--updates", UPDATES, "--out", "demo", **offline)
        run(scripts / "dgpo", "replay", "demo/record")
        # the quick start, with the demo's model in the place of one that `dgpo starter` would make in the same way
        shutil.copytree(folder / "demo/starter", folder / "outputs/starter")
        (folder / "first.py").write_text(example("README.md"), encoding="utf-8")
        run(scripts / "python", "first.py", **offline)
        run(scripts / "dgpo", "doctor", "outputs/first/record")
        run(scripts / "dgpo", "report", "outputs/first/record", "--out", "first.html")
        if not (folder / "demo/report.html").is_file():
            raise Wrong("dgpo demo wrote no report.html")


def main(argv: list[str]) -> int:
    """Run a check; 1 with a line on stderr if it fails."""
    parser = argparse.ArgumentParser(prog="release_check.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("versions").add_argument("tag", nargs="?")
    commands.add_parser("try")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "versions":
            print(f"dgpo {check_versions(tag=arguments.tag)}")
        else:
            try_it(built(ROOT / "dist", version()))
            print("the wheel works in an empty environment")
    except Wrong as wrong:
        print(f"release-check: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
