"""One call of `Pool.run`: sends jobs, reads answers and enforces deadlines, in the thread of the caller."""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dgpo.grading.workers.allocation import Allocation
from dgpo.grading.workers.processes import START_LIMIT, Worker

TURN = 0.02
"""Seconds for which a thread may keep a worker over several jobs while other threads wait."""


@dataclass(frozen=True)
class Outcome:
    """The result of one job.

    Attributes:
        status: `ok`; `timeout`: killed at the deadline; `died`: the worker ended by itself (a crash in C, out of
            memory); `error`: the judge raised.
        value: what the judge returned, or the text of its error; empty for `timeout` and `died`.
        seconds: wall-clock time of the work, without the wait for a worker.
    """

    status: Literal["ok", "timeout", "died", "error"]
    value: str
    seconds: float


class Batch:
    """One call of `Pool.run`: the workers that it holds, and the jobs that remain."""

    def __init__(self, pool: Allocation, jobs: Sequence[tuple[str, ...]]) -> None:
        self.pool = pool
        self.jobs = jobs
        self.todo = deque(range(len(jobs)))
        self.repeated: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}
        self.held: dict[int, Worker] = {}
        self.poller = select.poll()

    def finish(self) -> list[Outcome]:
        most = self.pool.settings.workers
        try:
            # a held worker has a job or is starting; `_next` returns one that is ready and has none
            while self.todo or self.held:
                if not self.todo:  # workers without a job go back to the other threads
                    for worker in [worker for worker in self.held.values() if worker.job is None]:
                        self._let_go(worker)
                        self.pool.release(worker)
                starting = sum(worker.job is None for worker in self.held.values())
                wanted = min(most - len(self.held), len(self.todo) - starting)
                if wanted > 0:
                    # block only while holding none: the answers of held workers have to be read
                    for worker in self.pool.take(self, wanted, wait=not self.held):
                        self._hold(worker)
                if self.held:
                    self._wait()
        finally:
            self.pool.abandon(self)
        return [self.outcomes[index] for index in range(len(self.jobs))]

    def _hold(self, worker: Worker) -> None:
        self.held[worker.fd] = worker
        self.poller.register(worker.fd, select.POLLIN)
        if worker.pid is not None:
            self._next(worker)

    def _wait(self) -> None:
        """Wait until a worker answers or exceeds its deadline."""
        soonest = min(self._due(worker) for worker in self.held.values())
        # poll counts in an int of milliseconds, which overflows after 24 days
        wait = min(max(0.0, soonest - time.monotonic()), 3600.0)
        events = self.poller.poll(math.ceil(wait * 1000))
        now = time.monotonic()
        for fd, event in events:
            worker = self.held[fd]
            # read before deadlines are checked: an answer counts even if this process was slow
            # POLLHUP and POLLERR too: the read finds the end of the worker
            if event & ~select.POLLOUT:
                self._read(worker)
            else:
                self._write_on(worker)
        for worker in [worker for worker in self.held.values() if self._due(worker) <= now]:
            if worker.job is not None:
                self.outcomes[worker.job] = Outcome("timeout", "", now - worker.since)
                self._drop(worker, kills=1)
            else:
                self.pool.fail(f"it was not ready after {START_LIMIT} s")
                self._drop(worker)

    def _write_on(self, worker: Worker) -> None:
        try:
            if worker.flush():
                self.poller.modify(worker.fd, select.POLLIN)
        except (BrokenPipeError, ConnectionResetError):
            self._lost(worker)

    def _due(self, worker: Worker) -> float:
        return worker.since + (START_LIMIT if worker.job is None else self.pool.settings.deadline)

    def _next(self, worker: Worker) -> None:
        """Give the worker its next job, or release it."""
        if not self.todo or (self.pool.others_wait() and time.monotonic() - worker.taken > TURN):
            self._let_go(worker)
            self.pool.release(worker)
            return
        index = self.todo.popleft()
        try:
            if not worker.write(index, self.jobs[index]):
                self.poller.modify(worker.fd, select.POLLIN | select.POLLOUT)
        except (BrokenPipeError, ConnectionResetError):
            # it ended while idle: not the fault of this job
            self.todo.appendleft(index)
            self._lost(worker)

    def _read(self, worker: Worker) -> None:
        try:
            reply = worker.read()
        except EOFError:
            self._lost(worker)
            return
        if reply is None:
            return
        if worker.job is not None:
            self._answered(worker, worker.job, reply)
        elif "error" in reply:
            self.pool.fail(reply["error"])
            self._drop(worker)
        else:
            worker.pid = reply["pid"]
            self._next(worker)

    def _answered(self, worker: Worker, index: int, reply: dict[str, Any]) -> None:
        status: Literal["ok", "error"] = "ok" if "value" in reply else "error"
        self.outcomes[index] = Outcome(status, reply.get("value") or reply.get("error", ""), reply["seconds"])
        self.pool.succeed()
        worker.job = None
        worker.answered += 1
        if reply.get("spent") or worker.answered >= self.pool.settings.recycle:
            self._drop(worker, recycled=1)
        else:
            self._next(worker)

    def _lost(self, worker: Worker) -> None:
        """The worker ended by itself, or with the fork server."""
        index = worker.job
        # killed with the fork server, which is not the fault of the job: run it again, but only once
        if worker.server.lost() and index not in self.repeated:
            if index is not None:
                self.repeated.add(index)
                self.todo.appendleft(index)
            self._drop(worker)
            return
        if index is None:
            self.pool.fail("it ended before it had a job")
        else:
            self.outcomes[index] = Outcome("died", "", time.monotonic() - worker.since)
        self._drop(worker, deaths=1)

    def _drop(self, worker: Worker, *, kills: int = 0, deaths: int = 0, recycled: int = 0) -> None:
        self._let_go(worker)
        self.pool.replace(worker, kills=kills, deaths=deaths, recycled=recycled)

    def _let_go(self, worker: Worker) -> None:
        del self.held[worker.fd]
        self.poller.unregister(worker.fd)
