"""What gpu_pack.sh has packed is unpacked whole, or the part that is missing or damaged is named."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from gpu import unpack

ROOT = Path(__file__).resolve().parents[2]


def wheel(folder: Path, name: str, version: str) -> Path:
    """One with a module of its name, as pip installs it."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n" + "#" * 5000)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return file


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three parts with a package that is not installed, one that is, one in another version, and the model."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "dgpo_no_such_package", "1.5")
    wheel(wheels, "pytest", importlib.metadata.version("pytest"))
    wheel(wheels, "rich", "0.0.1")
    wheel(wheels, unpack.MODEL, "0.1.2")
    whole = tmp_path / "pack"
    with tarfile.open(whole, "w") as archive:
        archive.add(wheels, "wheels")
    folder = tmp_path / "there"
    folder.mkdir()
    content = whole.read_bytes()
    third = len(content) // 3 + 1
    sums = ""
    for i in range(3):
        part = folder / f"pack.{i:02}"
        part.write_bytes(content[i * third : (i + 1) * third])
        sums += f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}\n"
    (folder / unpack.SUMS).write_text(sums)
    return folder


def test_parts_make_a_whole_and_only_what_is_missing_is_installed(packed: Path) -> None:
    wheels = unpack.unpack(packed)
    assert {file.name.partition("-")[0] for file in wheels.iterdir()} == {
        "dgpo_no_such_package",
        "pytest",
        "rich",
        unpack.MODEL,
    }
    for file in packed.glob("pack.*"):  # no longer needed
        file.unlink()
    assert unpack.unpack(packed) == wheels
    unpack.install(packed, wheels)
    assert {file.name for file in (packed / "site").glob("*.py")} == {"dgpo_no_such_package.py", "rich.py"}
    before = (packed / "site").stat().st_mtime_ns
    unpack.install(packed, wheels)
    assert (packed / "site").stat().st_mtime_ns == before


def test_a_part_that_is_missing_or_damaged_is_named(packed: Path) -> None:
    part = packed / "pack.01"
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(unpack.Incomplete, match=r"pack\.01 is missing; copy that part"):
        unpack.unpack(packed)
    part.write_bytes(content[:-1] + b"?")
    with pytest.raises(unpack.Incomplete, match=r"pack\.01 is damaged; copy that part again"):
        unpack.unpack(packed)
    (packed / unpack.SUMS).unlink()
    with pytest.raises(unpack.Incomplete, match="gpu_pack.sh"):
        unpack.unpack(packed)
    assert not (packed / "wheels").exists()


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_PACK": str(tmp_path)}
    script = [str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"unpack: {tmp_path} has no pack.sha256; copy the parts that gpu_pack.sh has made into it\n"


def test_wheels_have_a_version(tmp_path: Path) -> None:
    """In constraints.txt, except for what the model's wheel alone needs."""
    names = [line for line in (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text().splitlines() if line[0] != "#"]
    pinned = {line.partition("==")[0].lower().replace("-", "_") for line in (ROOT / "constraints.txt").open()}
    assert {name.replace("-", "_") for name in names} - pinned <= {"gguf"}
