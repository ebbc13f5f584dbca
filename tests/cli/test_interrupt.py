"""Ctrl-C during `dgpo train`: a checkpoint, a command to go on with, and a run that ends where it should have."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist

from dgpo.training.callbacks import StopOnSignal

REWARD = """
import os, time

def slow(completions, **kwargs):
    time.sleep(float(os.environ.get("DGPO_TEST_SLEEP", 0)))
    return [float(len(text)) for text in completions]
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to a process")
def test_ctrl_c_saves_says_how_to_resume_and_resuming_finishes(
    dgpo: Callable[..., Any],
    executable: Path,
    quick: list[str],
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a process of its own, while the second generation is scored; 12 updates were asked for."""
    (tmp_path / "slow_reward_of_this_test.py").write_text(REWARD)
    flags = ["--task", "addition", *quick, "--max_steps", "12", "--rewards", "slow_reward_of_this_test.slow"]
    process = subprocess.Popen(
        [executable, "train", *flags],
        cwd=tmp_path,
        env={**os.environ, "DGPO_TEST_SLEEP": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # a full pipe would block it
    reader.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.lstrip().startswith("4/12  reward"):
            process.send_signal(signal.SIGINT)
            break
    said = process.stdout.read()
    code = process.wait(timeout=120)
    reader.join()
    assert code == 0, errors[0]
    assert "press again to stop immediately" in said
    stopped = re.search(r"stopped at update (\d+); checkpoint saved in (.*)\. Continue with:", said)
    assert stopped is not None
    assert stopped[2] == str(output)
    assert 4 <= int(stopped[1]) < 12
    assert (output / f"checkpoint-{stopped[1]}" / "trainer_state.json").is_file()
    assert not (output / "model.safetensors").exists()

    command = shlex.split(said.strip().splitlines()[-1])
    assert command == ["dgpo", "train", *flags, "--resume"]
    monkeypatch.chdir(tmp_path)
    done = dgpo(*command[1:], "--save_strategy", "steps", "--save_steps", "12")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("done: 12 updates")
    state = json.loads((output / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["global_step"] == 12
    assert [row["step"] for row in state["log_history"] if "loss" in row] == list(range(1, 13))


def test_a_second_ctrl_c_stops_at_once_and_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the echo of the first, nor a SIGTERM: torchrun sends both after a Ctrl-C that its ranks had as well."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before = [signal.getsignal(number) for number in StopOnSignal.SIGNALS]
    with StopOnSignal():
        signal.raise_signal(signal.SIGINT)
        now += 0.5
        signal.raise_signal(signal.SIGINT)
        now += 5
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in StopOnSignal.SIGNALS] == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP there")
@pytest.mark.parametrize("number", StopOnSignal.SIGNALS)
@pytest.mark.parametrize("ignored", [False, True])
def test_every_signal_saves_unless_it_was_ignored(number: signal.Signals, ignored: bool) -> None:
    """`nohup` starts a process with SIGHUP ignored, a script its background with SIGINT ignored."""
    before = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    stop, control = StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
    try:
        with stop:
            signal.raise_signal(number)
            stop.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, control)
        assert control.should_save == control.should_training_stop == stop.stopped == (not ignored)
        assert signal.getsignal(number) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals there")
def test_a_terminal_that_is_closed() -> None:
    """The kernel sends SIGHUP, and whatever is printed to the terminal afterwards is an error."""
    import pty

    child, terminal = pty.fork()
    if not child:
        stop, control = StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
        code = 3
        sys.stdout = os.fdopen(1, "w")  # not pytest's
        with stop:
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.05)
                stop.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, control)
                if stop.stopped:
                    print("a log line", flush=True)
                    code = 0 if control.should_save else 4
                    break
        os._exit(code)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_while_a_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler runs inside the write that it has interrupted, and must not enter the same buffer."""

    class Interrupted(io.RawIOBase):
        lines: ClassVar[list[bytes]] = []

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.lines.append(bytes(data))
            signal.raise_signal(signal.SIGTERM)
            return len(data)

    with StopOnSignal() as stop:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
            print("a log line", flush=True)
        stop.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, SimpleNamespace())
    assert stop.stopped
    assert Interrupted.lines == [b"a log line\n"]


@pytest.mark.parametrize("signalled", [False, True])
def test_training_is_stopped_at_the_end_of_a_step(signalled: bool) -> None:
    """A signal after the last step came too late to stop anything: then training is done, not stopped."""
    stop, control = StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
    with stop:
        if signalled:
            signal.raise_signal(signal.SIGINT)
        assert not stop.stopped
        stop.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, control)
    assert stop.stopped == control.should_save == control.should_training_stop == signalled


def _rank(rank: int, store: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    stop, control = StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
    steps = 0
    with stop:
        while not control.should_training_stop and steps < 5:
            if rank == 1 and steps == 2:
                signal.raise_signal(signal.SIGINT)
            stop.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, control)
            steps += 1
    dist.destroy_process_group()
    results.put((rank, steps, stop.stopped))


def test_two_ranks_stop_after_the_same_step(tmp_path: Path) -> None:
    """A signal that only one of two processes gets; without agreement the other would wait for it forever."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path / "store"), results)) for rank in range(2)]
    for process in ranks:
        process.start()
    got = sorted(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert got == [(0, 3, True), (1, 3, True)]
