"""Which call of `Pool.run` may use which worker, and which workers there are."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque

from dgpo.grading.workers.processes import ForkServer, PoolSettings, Worker

ATTEMPTS = 3
"""Consecutive failed starts before `run` gives up, in addition to one per worker, which may have died while idle."""


class Allocation:
    """The workers of a pool, each held by one call of `run` at a time; started when they are needed.

    Attributes:
        settings: of the pool.
        kills: workers killed at the deadline.
        deaths: workers that ended by themselves, during a job or idle.
        recycled: workers replaced after `recycle` answers, or after an answer that was a MemoryError.
    """

    def __init__(self, settings: PoolSettings) -> None:
        if os.name != "posix":
            raise NotImplementedError(f"Pool needs fork and Unix sockets (Linux, macOS), not {sys.platform}")
        self.settings = settings
        self.kills = self.deaths = self.recycled = 0
        self._closed = False
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._lock = threading.Condition()
        self._line: deque[object] = deque()  # waiting threads, first come first served
        self._workers: list[Worker] = []
        self._server: ForkServer | None = None
        self._failed = 0  # starts in a row

    def size(self) -> int:
        """Number of workers: idle, busy or starting."""
        with self._lock:
            return len(self._workers)

    def pids(self) -> list[int]:
        """Process ids of the workers that are ready."""
        with self._lock:
            return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End every process; may be called again. A `run` in progress in another thread raises ValueError."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.end()
            # another thread may be polling the socket of its worker: it closes that itself
            for worker in self._free():
                worker.close()
                self._workers.remove(worker)
            self._lock.notify_all()

    def take(self, holder: object, most: int, *, wait: bool) -> list[Worker]:
        """Up to `most` free workers, ready or starting; at least one if `wait`."""
        with self._lock:
            # a call that holds a worker already does not overtake those that wait for their first
            if not wait and self._line:
                return []
            self._line.append(holder)
            try:
                while not self._closed and (self._line[0] is not holder or (wait and not self._has_free())):
                    self._lock.wait()
            finally:
                self._line.remove(holder)
                self._lock.notify_all()
            if self._closed:
                raise ValueError("the pool is closed")
            # others wait behind this one: leave workers for them
            if self._line:
                most = 1
            while len(self._free()) < most and len(self._workers) < self.settings.workers:
                self._spawn()
            # those that are ready before those that start
            taken = sorted(self._free(), key=lambda worker: worker.pid is None)[:most]
            for worker in taken:
                worker.take(holder)
            return taken

    def _free(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.holder is None]

    def _has_free(self) -> bool:
        return len(self._workers) < self.settings.workers or bool(self._free())

    def _spawn(self) -> None:
        # ends by `fail`, which raises after too many starts in a row
        while True:
            if self._server is None or self._server.lost():
                self._drop_server()
                self._server = ForkServer(self.settings)
            try:
                self._workers.append(self._server.spawn())
                return
            except (BrokenPipeError, ConnectionResetError):
                self.fail("the fork server ended")

    def _drop_server(self) -> None:
        """Its workers are dead or dying; a thread that holds one notices by itself."""
        if self._server is not None:
            self._server.end()
            self._server = None
        for worker in self._free():
            worker.close()
            self._workers.remove(worker)

    def release(self, worker: Worker) -> None:
        """Free a worker that has no job."""
        with self._lock:
            worker.holder = None
            self._lock.notify_all()

    def others_wait(self) -> bool:
        """Whether another thread waits for a worker."""
        # without the lock: a stale answer costs at most one job
        return bool(self._line)

    def replace(self, worker: Worker, *, kills: int = 0, deaths: int = 0, recycled: int = 0) -> None:
        """Kill a worker, whatever it is doing, and start another; counts the reason."""
        with self._lock:
            self.kills, self.deaths, self.recycled = self.kills + kills, self.deaths + deaths, self.recycled + recycled
            worker.server.kill(worker)
            worker.close()
            self._workers.remove(worker)
            if self._closed:
                # only after the kill: the worker ends even if another thread has closed the pool meanwhile
                raise ValueError("the pool was closed while it was running")
            # a new fork server takes a while: it is started when a job needs it
            if not worker.server.lost():
                self._spawn()
            self._lock.notify_all()

    def succeed(self) -> None:
        """A worker has answered: reset the count of failed starts."""
        self._failed = 0

    def fail(self, reason: str) -> None:
        """Count a failed start; raises RuntimeError after too many in a row."""
        self._failed += 1
        if self._failed > self.settings.workers + ATTEMPTS:
            failed, self._failed = self._failed, 0
            raise RuntimeError(f"{failed} starts of a worker for {self.settings.judge_file} failed in a row: {reason}")

    def abandon(self, holder: object) -> None:
        """Kill the workers that a failed `run` still holds: one with a job would answer the next caller."""
        with self._lock:
            for worker in [worker for worker in self._workers if worker.holder is holder]:
                worker.server.kill(worker)
                worker.close()
                self._workers.remove(worker)
            self._lock.notify_all()

    def forget(self) -> None:
        """In a forked child: the processes are the parent's, and a thread that no longer exists may hold the lock."""
        workers, server = list(self._workers), self._server
        self._begin()
        for worker in workers:
            worker.close()
        if server is not None:
            server.forget()


_ALL: weakref.WeakSet[Allocation] = weakref.WeakSet()


def _forget_all() -> None:
    for allocation in list(_ALL):
        allocation.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
