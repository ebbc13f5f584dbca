"""The output folder of `dgpo train`: occupied, locked, continued; and the command that continues."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo.cli import launcher
from dgpo.files import FolderInUse, FolderLock
from dgpo.training.checkpoint_files import checkpoints

SAVING = ["--task", "addition", "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def run(dgpo: Callable[..., Any], quick: list[str], output: Path, finished: Path) -> list[str]:
    """The flags of a run of two updates whose folder `output` is; trained once."""
    flags = [*quick, *SAVING]
    if not finished.exists():
        assert dgpo("train", *flags).code == 0
        shutil.copytree(output, finished)
    else:
        shutil.copytree(finished, output)
    return flags


def test_an_occupied_folder_is_refused(dgpo: Callable[..., Any], run: list[str], output: Path) -> None:
    dgpo("train", *run, "--seed", 1).one_error(
        f"output_dir = {str(output)!r} holds checkpoints of an earlier run (the last is checkpoint-2)",
        "continue that with --resume, give another --output_dir, or replace it with --overwrite_output_dir",
    )
    shutil.rmtree(output / "checkpoint-2")
    dgpo("train", *run).one_error("holds a model already (model.safetensors)", "give another --output_dir")


def test_overwriting_deletes_the_checkpoints(dgpo: Callable[..., Any], run: list[str], output: Path) -> None:
    (output / "checkpoint-2").rename(output / "checkpoint-8")
    (output / "notes.txt").write_text("mine")
    done = dgpo("train", *run, "--seed", 1, "--overwrite_output_dir")
    assert done.code == 0, done.err
    assert [path.name for path in checkpoints(output)] == ["checkpoint-2"]
    assert (output / "notes.txt").read_text() == "mine"
    dgpo("train", *run, "--resume", "--overwrite_output_dir").one_error("--overwrite_output_dir", "give one of them")


def test_overwriting_replaces_the_recording_of_that_run_and_of_no_other(
    dgpo: Callable[..., Any], quick: list[str], output: Path, tmp_path: Path
) -> None:
    """Without a checkpoint: nothing could be resumed."""
    flags = ["--task", "addition", *quick, "--max_steps", 1, "--save_strategy", "no"]
    record, other = output / "record", ["--output_dir", tmp_path / "other"]
    assert dgpo("train", *flags, "--record", record).code == 0
    (output / "model.safetensors").unlink()
    (record / "notes.txt").write_text("mine")
    dgpo("train", *flags, "--record", record).one_error(
        f"record = {str(record)!r} already holds a run of 1 update; replace it with --overwrite_output_dir"
    )
    dgpo("train", *flags, "--record", record, "--resume").one_error("no checkpoint", "leave --resume out")
    dgpo("train", *flags, *other, "--record", record, "--overwrite_output_dir").one_error(
        f"holds a run with output_dir = {str(output)!r}, which --overwrite_output_dir does not replace",
        "--record_overwrite",
    )
    before = (record / "run.json").read_text()
    done = dgpo("train", *flags, "--record", record, "--overwrite_output_dir")
    assert done.code == 0, done.err
    assert (record / "run.json").read_text() != before
    assert (record / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (["--seed", "1"], "seed: 42 -> 1"),
        (["--objective", "grpo"], 'objective.name: "dgpo" -> "grpo"'),
        (["--objective_kwargs", '{"m": 3}'], "objective.m: 2 -> 3"),
        (["--task", "reverse"], "data.sha256: "),
        (["--rewards", "answer_reward"], "rewards: "),
        (["--beta", "0.1"], "beta: 0.0 -> 0.1"),
        (["--use_peft", "--lora_target_modules", "q_proj", "v_proj"], "peft.default"),
    ],
)
def test_another_run_is_not_continued(
    dgpo: Callable[..., Any], run: list[str], changed: list[str], difference: str
) -> None:
    dgpo("train", *run, "--max_steps", 3, *changed, "--resume").one_error(
        "belongs to another run. Differences (checkpoint -> now): ", difference, "--resume_allow_changed"
    )


def test_what_is_named_may_change(dgpo: Callable[..., Any], run: list[str]) -> None:
    done = dgpo("train", *run, "--max_steps", 3, "--seed", 1, "--resume", "--resume_allow_changed", "seed")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("done: 3 updates")


def test_a_half_written_checkpoint_is_passed_over(dgpo: Callable[..., Any], run: list[str], output: Path) -> None:
    shutil.copytree(output / "checkpoint-2", output / "checkpoint-8")
    (output / "checkpoint-8" / "trainer_state.json").unlink()
    done = dgpo("train", *run, "--max_steps", 3, "--resume")
    assert done.code == 0, done.err
    assert "checkpoint-8 is skipped: trainer_state.json is missing\n" in done.out
    assert f"continuing from {output / 'checkpoint-2'}\n" in done.out
    (output / "checkpoint-2" / "optimizer.pt").unlink()
    shutil.rmtree(output / "checkpoint-3", ignore_errors=True)
    dgpo("train", *run, "--max_steps", 3, "--resume").one_error(
        "checkpoint-8: trainer_state.json is missing; checkpoint-2: it has no optimizer.pt",
        "--resume_allow_missing optimizer",
    )


def test_a_full_disk_is_one_line(
    dgpo: Callable[..., Any], quick: list[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        dgpo("train", *quick, *SAVING).one_error("the checkpoint of update 2 could not be written to", "checkpoint")
        dgpo("train", *quick, *SAVING, "--save_strategy", "no").one_error("the model could not be written to")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- the lock --------------------------------------------------------------------------------------------------------


def hold(folder: str, ready: Any, child: bool = False) -> None:
    with FolderLock(folder, "training into"):
        if child and os.fork() == 0:
            ready.put(os.getpid())
            time.sleep(60)
            os._exit(0)
        ready.put(os.getpid())
        time.sleep(60)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_processes_in_one_folder(dgpo: Callable[..., Any], quick: list[str], output: Path) -> None:
    """The second is refused in one line; what a killed one leaves behind is no lock, nor what its forks keep open."""
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    holder = context.Process(target=hold, args=(str(output), ready, True))
    holder.start()
    fork, _ = sorted((ready.get(timeout=30), ready.get(timeout=30)), key=lambda pid: pid == holder.pid)
    try:
        dgpo("train", *quick, *SAVING).one_error(
            f"another process is training into {str(output)!r} (process {holder.pid} on ",
            "wait for it, or use another folder",
        )
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with FolderLock(output, "training into"):
            assert FolderLock.held(output)
            with pytest.raises(FolderInUse), FolderLock(output, "training into"):
                pass
        assert not FolderLock.held(output)
    finally:
        os.kill(fork, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize("command", ["demo", "starter"])
def test_two_demos_in_one_folder(dgpo: Callable[..., Any], output: Path, command: str) -> None:
    with FolderLock(output, "being tested in"):
        dgpo(command, "--out", output).one_error(f"another process is being tested in {str(output)!r}")


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_two_runs_recorded_to_one_folder(dgpo: Callable[..., Any], quick: list[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Queue()
    holder = context.Process(target=hold, args=(str(tmp_path / "record"), ready))
    holder.start()
    ready.get(timeout=30)
    try:
        dgpo("train", *quick, *SAVING, "--record", tmp_path / "record").one_error(
            f"another process is training into {str(tmp_path / 'record')!r}"
        )
    finally:
        holder.kill()


@pytest.mark.parametrize(
    ("command", "file", "message"),
    [
        ("demo", "record/mine.txt", "contains 'record', which the demo did not write"),
        ("demo", "model/model.safetensors", "contains 'model', which the demo did not write"),
        ("demo", "starter/config.json", "holds a model (config.json) that is not a starter model"),
        ("starter", "model.safetensors", "holds a model (model.safetensors) that is not a starter model"),
    ],
)
def test_what_is_not_theirs_is_kept(
    dgpo: Callable[..., Any], output: Path, command: str, file: str, message: str
) -> None:
    (output / file).parent.mkdir(parents=True)
    (output / file).write_text("mine")
    dgpo(command, "--out", output).one_error(message, "give another folder")
    assert [path for path in output.rglob("*") if path.is_file()] == [output / file]


# --- the command that continues --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--a", "1", "--resume"], ["--a", "1"]),
        (["--resume", "true", "--a", "1"], ["--a", "1"]),
        (["--resume=True", "--a"], ["--a"]),
        (["--resume_from_checkpoint", "out/checkpoint-2", "--a"], ["--a"]),
        (["--resume-from-checkpoint=out/checkpoint-2", "--a"], ["--a"]),
        (["--overwrite_output_dir", "--a", "b c"], ["--a", "b c"]),
        (["--resume_allow_changed", "seed"], ["--resume_allow_changed", "seed"]),
    ],
)
def test_words_about_resuming_are_replaced(words: list[str], kept: list[str]) -> None:
    assert launcher.without_resume(words) == kept


ARGV = ["--objective_kwargs", '{"n": 2}', "--output_dir", "out"]


@pytest.mark.parametrize(
    ("parents", "command"),
    [
        ([["/usr/bin/zsh"]], "dgpo train"),
        ([["/bin/bash", "-c", "dgpo train --objective_kwargs ..."]], "dgpo train"),
        (
            [["/x/bin/python3.11", "/x/bin/torchrun", "--nproc_per_node", "2", "/x/bin/dgpo", "train", *ARGV], ["zsh"]],
            "/x/bin/python3.11 /x/bin/torchrun --nproc_per_node 2 /x/bin/dgpo train",
        ),
        (
            [
                [
                    "/x/python",
                    "-m",
                    "accelerate.commands.launch",
                    "--config_file",
                    "a b.yaml",
                    "dgpo",
                    "train",
                    *ARGV,
                ]
            ],
            "/x/python -m accelerate.commands.launch --config_file 'a b.yaml' dgpo train",
        ),
        (
            [
                ["/x/python", "-m", "torch.distributed.run", "--standalone", "/x/bin/dgpo", "train", *ARGV],
                ["timeout", "3600", "torchrun", "--standalone", "/x/bin/dgpo", "train", *ARGV],
                ["bash"],
            ],
            "timeout 3600 torchrun --standalone /x/bin/dgpo train",
        ),
    ],
)
def test_the_launcher_is_that_of_the_run(
    monkeypatch: pytest.MonkeyPatch, parents: list[list[str]], command: str
) -> None:
    monkeypatch.setattr(launcher, "_ancestors", lambda: parents)
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    again = launcher.continuing(ARGV, ["--resume"])
    assert again == f"{command} --objective_kwargs '{{\"n\": 2}}' --output_dir out --resume"


@pytest.mark.parametrize(
    ("world", "expected"),
    [("2", "torchrun --standalone --nproc_per_node 2"), ("8", "torchrun --nnodes 4 --nproc_per_node 2")],
)
def test_the_launcher_where_no_parent_can_be_read(monkeypatch: pytest.MonkeyPatch, world: str, expected: str) -> None:
    monkeypatch.setattr(launcher, "_ancestors", list)
    monkeypatch.setattr(sys, "argv", ["/x/bin/dgpo", "train"])
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert launcher.continuing(["--a"], ["--resume"]) == f"{expected} /x/bin/dgpo train --a --resume"
