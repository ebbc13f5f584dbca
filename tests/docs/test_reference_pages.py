"""docs/cli.md is what the parsers say, and docs/config.md what the dataclasses of the trainer say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import pytest
from trl import GRPOConfig

from dgpo.cli.main import COMMANDS
from dgpo.training import DGPOConfig


def test_both_are_current(reference_script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference_script.main(["--check"]) == 0, capsys.readouterr().err


def test_every_command_is_there(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### dgpo (\S+)$", text, re.MULTILINE)) == sorted(COMMANDS)
    assert f"`dgpo` has {len(COMMANDS)} commands" in text


def test_every_field_of_ours_is_there(root: Path) -> None:
    """Each once, with a text; of TRL's, those that are marked so."""
    text = (root / "docs" / "config.md").read_text(encoding="utf-8").split("## AsyncDGPOConfig")[0]
    listed = re.findall(r"^`(\w+): .+ = .+`( \*TRL\*)?\n: (\S.*)$", text, re.MULTILINE)
    names = [name for name, _, _ in listed]
    own = {field.name for field in dataclasses.fields(DGPOConfig)}
    trl = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert len(set(names)) == len(names)
    assert own - trl <= set(names) <= own
    assert {name for name, mark, _ in listed if mark} <= trl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("With 'none' or --use_cpu, see reward_weights.", "With `none` or `--use_cpu`, see `reward_weights`."),
        ("fields, dgpo:n=2,m=2 (default: dgpo)", "fields, `dgpo:n=2,m=2` (default: dgpo)."),
        ("as `dgpo tasks` lists: {\"n\": 2}, a*b", "as `dgpo tasks` lists: `{\"n\": 2}`, a\\*b."),
        ("server: on GPUs of its own; 1e-6, -1 for all", "server: on GPUs of its own; 1e-6, -1 for all."),
    ],
)  # fmt: skip
def test_help_texts_as_markdown(reference_script: ModuleType, text: str, expected: str) -> None:
    assert reference_script._prose(text) == expected
