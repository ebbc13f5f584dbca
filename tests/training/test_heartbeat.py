"""A rank that hangs ends the others, and is named; one that is slow, or done, does not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from typing import Any

import pytest
import torch.distributed as dist

from dgpo.training import DGPOConfig
from dgpo.training.heartbeat import Heartbeat

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def rank(number: int, port: int, said: Any, how: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    errors: list[str] = []
    started = time.monotonic()
    with Heartbeat(1.0, errors.append):
        if number == 1 and how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if number == 1 and how == "done":
            time.sleep(0.3)
        else:
            while not errors and time.monotonic() - started < (20 if how == "stopped" else 2.5):
                time.sleep(0.05)
    said.put((number, errors, time.monotonic() - started))
    said.close()
    said.join_thread()
    time.sleep(3 if how == "done" else 0)  # as long as the other looks
    os._exit(0)


@pytest.mark.parametrize("how", ["stopped", "slow", "done"])
def test_two_ranks(how: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    ranks = [context.Process(target=rank, args=(number, port, said, how)) for number in range(2)]
    for process in ranks:
        process.start()
    try:
        outcomes = [said.get(timeout=60)] if how == "stopped" else sorted(said.get(timeout=60) for _ in ranks)
    finally:
        for process in ranks:
            process.kill()
    if how != "stopped":
        assert [errors for _, errors, _ in outcomes] == [[], []]
        return
    ((number, (error,), seconds),) = outcomes
    assert number == 0
    assert f"rank 1 (process {ranks[1].pid} on " in error or error.startswith("rank 1 has sent")
    assert error.endswith("has sent no heartbeat for 1 seconds (rank_timeout); rank 0 exits")
    assert 1 <= seconds < 15


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_none(limit: float) -> None:
    with pytest.raises(ValueError, match="rank_timeout"):
        DGPOConfig(use_cpu=True, bf16=False, rank_timeout=limit)
