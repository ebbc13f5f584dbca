"""Checkpoints of several ranks; stopping, continuing and hanging under the launchers that users have."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil
import pytest
import torch
from distributed_launch import ACCELERATE, train
from test_two_processes import deepspeed

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

SYNCED = {
    "beta": 0.1,
    "sync_ref_model": True,
    "ref_model_sync_steps": 1,
    "ref_model_mixup_alpha": 0.5,
    "save_strategy": "steps",
    "save_steps": 3,
    "optim": "adamw_torch",  # torch restores no state of a sharded optimiser that has none
}
WAYS = {
    "DDP": {},
    "FSDP2": {"fsdp": True},
    "ZeRO-2": {"deepspeed": deepspeed(2)},
    # DeepSpeed refuses its own batch sizes where a second model is loaded on a CPU
    "ZeRO-3": {"deepspeed": deepspeed(3), "beta": 0.0, "sync_ref_model": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_continue(tiny_folder, tmp_path, way):
    """Three updates from a checkpoint, with its reference, equal those of the run that was not interrupted."""
    if way.startswith("ZeRO") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    scenarios = {
        "whole": {**SYNCED, **WAYS[way]},
        "resumed": {**SYNCED, **WAYS[way], "resume": "whole-run/checkpoint-3"},
    }
    runs = train("torchrun", 2, tiny_folder, tmp_path, scenarios)
    for run in ("whole", "resumed"):
        names = {path.name for path in (tmp_path / f"{run}-run" / "checkpoint-6").iterdir()}
        assert {"dgpo_checkpoint.json", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= names
        assert not (tmp_path / f"{run}-run" / "_saving").exists()
    for name, value in runs["whole"].parameters.items():
        # three steps of AdamW on sums that the ranks add in no fixed order
        torch.testing.assert_close(runs["resumed"].parameters[name], value, rtol=0, atol=5e-6)
    logs = [[row for row in run.log if row["step"] > 3] for run in runs.values()]
    assert [row["grad_norm"] for row in logs[0]] == pytest.approx([row["grad_norm"] for row in logs[1]], rel=1e-3)
    if scenarios["whole"]["sync_ref_model"]:
        states = [torch.load(tmp_path / f"{run}-run" / "checkpoint-6" / "ref_model.pt") for run in runs]
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-6)
        assert [row["kl"] for row in logs[0]] == pytest.approx([row["kl"] for row in logs[1]], rel=1e-3)


REWARD = """
import time

def slow(completions, **kwargs):
    time.sleep(0.5)
    return [float(len(text)) for text in completions]
"""
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate": [*ACCELERATE, "2"],
}


def started(launcher, tiny_folder, tmp_path, *more):
    """The launcher, once its first update is logged, and the lines that it has written."""
    executable = Path(sysconfig.get_path("scripts"), "dgpo")
    if not executable.exists():
        pytest.skip("dgpo is not installed in this environment, so there is no console script")
    (tmp_path / "slow_reward_of_this_test.py").write_text(REWARD)
    flags = f"""--task addition --rewards slow_reward_of_this_test.slow --model_name_or_path {tiny_folder}
        --output_dir out --max_steps 400 --per_device_train_batch_size 4 --num_generations 4 --use_cpu --bf16 false
        --max_completion_length 4 --save_strategy no --report_to none --disable_tqdm true --logging_steps 1
        --gradient_checkpointing false --dataloader_pin_memory false""".split()
    output = open(tmp_path / "output", "w")  # noqa: SIM115 - the process writes to it
    process = subprocess.Popen(
        [sys.executable, *LAUNCHERS[launcher], str(executable), "train", *flags, *more],
        cwd=tmp_path,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
    )
    while "1/400  reward" not in (tmp_path / "output").read_text():
        assert process.poll() is None, (tmp_path / "output").read_text()[-3000:]
        time.sleep(0.2)
    return process


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_saves_and_its_command_continues(tiny_folder, tmp_path, launcher, number):
    process = started(launcher, tiny_folder, tmp_path)
    process.send_signal(number)
    process.wait(timeout=120)
    said = (tmp_path / "output").read_text()
    stopped = re.search(r"stopped at update (\d+); checkpoint saved in out. Continue with:\n  (.*)\n", said)
    assert stopped is not None, said[-3000:]
    assert (tmp_path / "out" / f"checkpoint-{stopped[1]}" / "rng_state_1.pth").is_file()
    command = f"{stopped[2]} --max_steps {int(stopped[1]) + 1}"
    assert " ".join(LAUNCHERS[launcher]) in command
    again = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"done: {int(stopped[1]) + 1} updates" in again.stdout


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_ends_the_others(tiny_folder, tmp_path, rank):
    process = started("torchrun", tiny_folder, tmp_path, "--rank_timeout", "10")
    ranks = {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children()}
    ranks[rank].send_signal(signal.SIGSTOP)
    before = time.monotonic()
    assert process.wait(timeout=120) == 1
    # rank_timeout, a heartbeat, torchrun's patience, a busy machine
    assert time.monotonic() - before < 10 + 5 + 30 + 30
    silent = "has sent no heartbeat for 10 seconds"
    said = (tmp_path / "output").read_text()
    assert re.search(rf"rank {rank} .*{silent} \(rank_timeout\); rank {1 - rank} exits", said)
