"""If a rank hangs, the others exit after a given time with an error that names it.

A collective waits for every rank, up to `ddp_timeout` (1,800 seconds), and its error does not say for which. So every
rank has a thread that sends heartbeats to the store of the process group, and reads those of the others. A process
that is stopped or stuck in the kernel sends none, however long a generation may take elsewhere. For a rank whose main
thread waits for ever while its other threads run, `ddp_timeout` is there.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

INTERVAL = 5.0
"""Seconds between two heartbeats, or a quarter of the limit where that is less."""


class Heartbeat:
    """Watches the other ranks while the context is open.

    Args:
        limit: seconds without a heartbeat after which this rank exits with code 1 and an error that names the silent
            one. 0 watches nothing.
        end: called with the error.
    """

    def __init__(self, limit: float, end: Callable[[str], None] | None = None) -> None:
        self.limit = limit
        self._end = end or _end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        if self.limit > 0 and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # a separate connection: the trainer may block the other one for minutes
            store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            store.set_timeout(timedelta(seconds=self.limit))
            self._thread = threading.Thread(target=self._watch, args=(store,), name="dgpo heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=INTERVAL)

    def _watch(self, store: Any) -> None:
        me, ranks = dist.get_rank(), dist.get_world_size()
        others = [rank for rank in range(ranks) if rank != me]
        beats, seen = 0, dict.fromkeys(others, "")
        since = dict.fromkeys(others, time.monotonic())
        who = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            while not self._stop.wait(min(INTERVAL, self.limit / 4)):
                beats += 1
                store.set(f"dgpo/heartbeat/{me}", f"{beats} {who}")
                for rank in others:
                    key = f"dgpo/heartbeat/{rank}"
                    # the store blocks a `get` of a key that nobody has set, so `check` comes first
                    beat = store.get(key).decode() if store.check([key]) else ""
                    now = time.monotonic()
                    # a rank that has finished sends no more, and is not silent
                    if beat != seen[rank] or beat.startswith(_DONE):
                        seen[rank], since[rank] = beat, now
                    elif now - since[rank] > self.limit:
                        where = f" ({beat.partition(' ')[2]})" if beat else ""
                        self._end(
                            f"rank {rank}{where} has sent no heartbeat for {self.limit:g} seconds (rank_timeout); "
                            f"rank {me} exits"
                        )
                        return
            # said to the others, which may still be writing
            store.set(f"dgpo/heartbeat/{me}", f"{_DONE} {who}")
        except dist.DistNetworkError:
            return  # the process that holds the store has ended: its launcher, or the next collective, reports it
        except dist.DistStoreError as error:
            if not self._stop.is_set():
                self._end(f"the process that holds the store of the process group hangs ({error}); rank {me} exits")


_DONE = "done"


def _end(message: str) -> None:
    print(f"dgpo: error: {message}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits in a collective, where no exception reaches it
