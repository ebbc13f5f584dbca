"""The page about installation lists every extra with its packages, and quotes errors as they are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from dgpo import installation
from dgpo.cli import main

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEXT = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with a word."""
    table = TEXT[TEXT.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[\[<>=;]", line)[0].strip().lower() for line in requirements}
    return found - {"dgpo"}


def test_every_extra_is_listed_with_what_it_brings() -> None:
    declared = {"(none)": names(PROJECT["dependencies"])}
    declared |= {f"`{extra}`": names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
    written = {row[0]: set(re.findall(r"`([\w-]+)`", row[2])) if len(row) > 2 else set() for row in rows("extra")}
    assert written == declared


def test_extras_that_include_others_say_so() -> None:
    texts = {row[0].strip("`"): row[1] for row in rows("extra")}
    for extra, lines in PROJECT["optional-dependencies"].items():
        included = {name for line in lines for name in re.findall(r"dgpo\[(.*)\]", line)}
        for name in ",".join(included).split(",") if included else ():
            assert f"`{name}`" in texts[extra], f"{extra} includes {name}"


def test_the_requirements_in_its_first_lines() -> None:
    python, torch = PROJECT["requires-python"], PROJECT["dependencies"][0]
    assert f"Python {python.removeprefix('>=')} or newer" in TEXT
    assert f"torch {torch.removeprefix('torch>=')} or newer" in TEXT


def test_the_error_about_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    there = installation.is_installed
    monkeypatch.setattr(
        installation, "is_installed", lambda module: module not in ("trl", "transformers", "datasets") and there(module)
    )
    monkeypatch.chdir(ROOT)
    assert main.run(["train", "--task", "addition"]) == 2
    assert f"| `{capsys.readouterr().err.strip()}` |" in TEXT


def test_the_error_about_another_trl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = installation.importlib.metadata.version
    monkeypatch.setattr(
        installation.importlib.metadata, "version", lambda name: "1.15.0" if name == "trl" else real(name)
    )
    assert main.run(["train", "--task", "addition"]) == 2
    assert f"| `{capsys.readouterr().err.strip()}` |" in TEXT
