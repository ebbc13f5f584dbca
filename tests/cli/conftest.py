"""The command run in this process, a tiny random model to run it on, and what one clear error looks like."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgpo.cli.main import run
from dgpo.training.starter import character_tokenizer, tiny_model


@pytest.fixture(autouse=True)
def no_cache_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data files that are read here do not end up in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def one_error(self, *parts: str) -> None:
        """Exit code 2, and one error line that holds every part: what was passed, what was expected."""
        assert self.code == 2, self.err
        errors = [line for line in self.err.splitlines() if ": error: " in line]
        assert len(errors) == 1, self.err
        assert self.err.splitlines()[-1] == errors[0] or "unknown command" in errors[0] or "no command" in errors[0]
        assert "Traceback" not in self.err
        for part in parts:
            assert part in errors[0], errors[0]


@pytest.fixture
def dgpo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`dgpo WORDS` in this process; an exception that would be a traceback fails the test."""

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        try:
            code = run([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = stop.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def executable() -> Path:
    """The console script that pip made."""
    path = Path(sysconfig.get_path("scripts"), "dgpo")
    if not path.exists():
        pytest.skip("dgpo is not installed in this environment, so there is no console script")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 model of 32 hidden units, saved with its character tokenizer as an ordinary folder."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = character_tokenizer()
    tiny_model(tokenizer, hidden=32, layers=2, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def quick_settings(tiny: Path, output: Path) -> dict[str, str]:
    """Settings of `dgpo train` for 4 quick updates: 8 prompts x 4 completions, generated once."""
    return {
        "model_name_or_path": str(tiny),
        "output_dir": str(output),
        "max_steps": "4",
        "per_device_train_batch_size": "8",
        "num_generations": "4",
        "max_completion_length": "5",
        "learning_rate": "1e-3",
        "lr_scheduler_type": "constant",
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "dataloader_pin_memory": "false",
        "save_strategy": "no",
        "logging_steps": "1",
        "disable_tqdm": "true",
    }


@pytest.fixture
def quick(quick_settings: dict[str, str]) -> list[str]:
    """The same as flags; a later flag wins."""
    return [word for name, value in quick_settings.items() for word in (f"--{name}", value)]
