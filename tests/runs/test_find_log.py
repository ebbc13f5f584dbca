"""The log in the output folder of a trainer."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dgpo import installation
from dgpo.runs.run import load_any


def state(folder: Path, steps: int, **more: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    history = [{"step": step, "reward": 0.5} for step in range(1, steps + 1)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history, **more}))


def jsonl(path: Path, steps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "reward": 0.5}) + "\n" for step in range(1, steps + 1)))


def test_the_newest_checkpoint_is_read(tmp_path: Path) -> None:
    for steps in (100, 20, 3):
        state(tmp_path / f"checkpoint-{steps}", steps, max_steps=500)
    run = load_any(tmp_path)
    assert len(run.log["reward"]) == 100
    assert run.folder == tmp_path / "checkpoint-100" / "trainer_state.json"
    assert run.remarks == ("read from checkpoint-100/trainer_state.json",)
    assert run.info["config"] == {"max_steps": 500}
    state(tmp_path, 120)  # at the end of training
    assert len(load_any(tmp_path).log["reward"]) == 120


def test_a_checkpoint_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-10", 10)
    state(tmp_path / "checkpoint-20", 20)
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("")
    run = load_any(tmp_path)
    assert len(run.log["reward"]) == 10
    assert any("checkpoint-20" in remark and "it is empty" in remark for remark in run.remarks)


def test_a_recorded_run_comes_before_everything_else(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-10", 10)
    jsonl(tmp_path / "record" / "metrics.jsonl", 7)
    run = load_any(tmp_path)
    assert (len(run.log["reward"]), run.folder) == (7, tmp_path / "record")


MADE: dict[str, Callable[[Path], object]] = {
    "logging.jsonl": lambda folder: jsonl(folder / "logging.jsonl", 4),
    "v1-20260101-000000/logging.jsonl": lambda folder: jsonl(folder / "v1-20260101-000000" / "logging.jsonl", 4),
    "v1-20260101-000000/checkpoint-4/trainer_state.json": lambda folder: state(
        folder / "v1-20260101-000000" / "checkpoint-4", 4
    ),
    "experiment.jsonl": lambda folder: jsonl(folder / "experiment.jsonl", 4),
    "train.log": lambda folder: jsonl(folder / "train.log", 4),
    "files/output.log": lambda folder: jsonl(folder / "files" / "output.log", 4),
    "wandb/offline-run-20260102_000000-b/files/output.log": lambda folder: [
        jsonl(folder / "wandb" / f"offline-run-2026010{day}_000000-b" / "files" / "output.log", 2 * day)
        for day in (1, 2)
    ],
}


@pytest.mark.parametrize("name", MADE)
def test_other_logs_in_a_folder(tmp_path: Path, name: str) -> None:
    MADE[name](tmp_path)
    for other in ("config.json", "tokenizer_config.json", "README.md", "args.json", "model.safetensors"):
        (tmp_path / other).write_text("{}")
    run = load_any(tmp_path)
    assert run.remarks[0] == f"read from {name}"
    assert len(run.log["reward"]) == 4


def test_settings_in_the_files_of_others_beside_a_log(tmp_path: Path) -> None:
    jsonl(tmp_path / "logging.jsonl", 4)
    (tmp_path / "args.json").write_text(
        json.dumps({"temperature": 0.9, "num_generations": 8, "beta": 0.0, "model": "m"})
    )
    assert load_any(tmp_path).info["config"] == {"temperature": 0.9, "num_generations": 8, "beta": 0.0}
    files = tmp_path / "wandb" / "files"
    jsonl(files / "output.log", 4)
    arguments = ["actor_rollout_ref.rollout.n=4", "--lr", "1e-5"]
    (files / "wandb-metadata.json").write_text(json.dumps({"args": arguments, "os": "Linux"}))
    assert load_any(tmp_path / "wandb").info["config"] == {"num_generations": 4, "learning_rate": 1e-05}
    (files / "wandb-metadata.json").write_text("{")
    assert load_any(tmp_path / "wandb").info == {}


def test_several_logs_are_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", 3)
    jsonl(tmp_path / "b.jsonl", 3)
    with pytest.raises(ValueError, match=re.escape("2 files that may be logs (a.jsonl, b.jsonl); give one of them")):
        load_any(tmp_path)


def test_offline_runs_of_wandb_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "run-1.wandb").write_bytes(b":W&B")
    with pytest.raises(ValueError, match=r"\.wandb files are not read: run `wandb sync`, and export the run as CSV"):
        load_any(tmp_path)


def test_event_files_without_their_reader_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out.tfevents.1.host").write_bytes(b"")
    monkeypatch.setattr(installation, "is_installed", lambda module: module != "tensorboard")
    with pytest.raises(ModuleNotFoundError, match=re.escape(installation.hint("tensorboard"))):
        load_any(tmp_path)


def test_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    for name, offset in (("old", 5.0), ("new", 0.0)):
        with SummaryWriter(tmp_path / "runs" / name) as writer:
            writer.add_text("args", json.dumps({"temperature": 0.7, "num_generations": 8, "output_dir": "x"}))
            for step in range(1, 6):
                writer.add_scalar("train/reward", step / 8 + offset, step)
                writer.add_scalar("train/grad_norm", float("nan"), step)
    os.utime(tmp_path / "runs" / "old", (1, 1))
    run = load_any(tmp_path)
    assert run.log["reward"].at == {step: step / 8 for step in range(1, 6)}
    assert run.log["grad_norm"].broken == (1, 2, 3, 4, 5)
    assert run.info["config"] == {"temperature": 0.7, "num_generations": 8}
    assert any("2 folders hold event files" in remark for remark in run.remarks)
    (file,) = (tmp_path / "runs" / "new").iterdir()
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "runs" / "new", cut)
    (cut / file.name).write_bytes(file.read_bytes()[:-40])
    assert len(load_any(cut).log["reward"]) in (4, 5)
    (cut / file.name).write_bytes(b"no event file at all")
    with pytest.raises(ValueError, match="no scalars in the event files"):
        load_any(cut)
