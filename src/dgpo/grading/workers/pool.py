"""A pool of processes that run one function of text under a deadline, and can always be killed.

    with Pool("judge.py", workers=2, deadline=1.5) as pool:
        pool.run([("1/2", "0.5"), ("9**9**9**9", "1")])   # [Outcome("ok", ...), Outcome("timeout", ...)]

The judge is a Python file with `warm_up()`, called once, and `judge(*strings) -> str`. It runs in workers that are
forks of one nursery process (`nursery.py`); this process only writes, polls and reads. No thread, no signal
handler and no alarm is used here. Nothing but JSON text crosses the pipes.

Linux and macOS; on macOS memory is not capped, and a busy worker whose nursery was killed ends only after its job.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dgpo.grading.workers.batch import Batch, Outcome
from dgpo.grading.workers.crew import Nursery, Settings, Worker

ATTEMPTS = 3
"""So many starts in a row may fail, and once every worker may have died while it was idle, before `run` gives up."""


class Pool:
    """Long-lived workers, started when they are needed; any number of threads may call `run` at a time.

    The deadline of a job starts when a worker has all of it, and limits how long its answer is waited for: an answer
    that is there when this process gets to look is taken. A late worker is killed and replaced at once, a dead one is
    replaced. Threads are served in the order in which they began to wait, and hand a worker on after at most a job and
    20 ms.

    After `os.fork()` the child starts workers of its own; a pickle carries the settings only. If the nursery is killed
    from outside, the next job starts a new one, and jobs that were under way are run a second time (once).

    Args:
        judge_file: the judge; see the module.
        workers: the most processes that work at a time.
        deadline: seconds per job.
        memory: bytes of address space of one worker (Linux).
        recycle: a worker is replaced after so many answers.

    Attributes:
        kills: workers killed at the deadline.
        deaths: workers that ended by themselves, during a job or idle.
        recycled: workers replaced after `recycle` answers, or after an answer that was a MemoryError.

    Raises:
        ValueError: a setting is out of its range, or `judge_file` is not a file.
        NotImplementedError: neither Linux nor macOS.
    """

    def __init__(
        self,
        judge_file: str | Path,
        *,
        workers: int = 2,
        deadline: float = 1.5,
        memory: int = 2 * 2**30,
        recycle: int = 1000,
    ) -> None:
        if os.name != "posix":
            raise NotImplementedError(f"Pool needs fork and Unix sockets (Linux, macOS), not {sys.platform}")
        if not Path(judge_file).is_file():
            raise ValueError(f"judge_file = {str(judge_file)!r} is not a file")
        for name, value, least in (("workers", workers, 1), ("memory", memory, 256 * 2**20), ("recycle", recycle, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} = {value!r}; expected an integer of at least {least}")
        if not (math.isfinite(deadline) and deadline > 0):
            raise ValueError(f"deadline = {deadline!r}; expected a finite number of seconds above 0")
        self.settings = Settings(str(Path(judge_file).resolve()), workers, float(deadline), memory, recycle)
        self.kills = self.deaths = self.recycled = 0
        self._closed = False
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        self._lock = threading.Condition()
        self._line: deque[object] = deque()  # threads that wait for a worker, first come first served
        self._workers: list[Worker] = []
        self._nursery: Nursery | None = None
        self._failed = 0  # starts in a row

    def __reduce__(self) -> tuple[object, ...]:
        return _make, (self.settings,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def size(self) -> int:
        """Workers that are there: idle, busy or about to be ready."""
        with self._lock:
            return len(self._workers)

    def pids(self) -> list[int]:
        """Process ids of the workers that are ready."""
        with self._lock:
            return [worker.pid for worker in self._workers if worker.pid is not None]

    def close(self) -> None:
        """End every process; may be repeated. A `run` of another thread that is under way raises ValueError."""
        with self._lock:
            self._closed = True
            if self._nursery is not None:
                self._nursery.end()
            # another thread may be polling the socket of its worker: it closes that itself
            for worker in [worker for worker in self._workers if worker.holder is None]:
                worker.close()
                self._workers.remove(worker)
            self._lock.notify_all()

    def run(self, jobs: Sequence[tuple[str, ...]]) -> list[Outcome]:
        """Give each job's strings to the judge; one outcome per job, in order.

        Raises:
            TypeError: a job is not a tuple of strings.
            ValueError: the pool is closed.
            ImportError: the judge's file could not be imported.
            RuntimeError: the nursery or its workers could not be started.
        """
        for index, job in enumerate(jobs):
            if not isinstance(job, tuple) or not all(isinstance(text, str) for text in job):
                raise TypeError(f"jobs[{index}] is {job!r:.200}; expected a tuple of strings")
        if self._closed:
            raise ValueError("the pool is closed")
        return Batch(self, jobs).finish()

    def take(self, holder: object, most: int, *, wait: bool) -> list[Worker]:
        """Up to `most` workers that nobody holds, ready or not yet; at least one if `wait`."""
        with self._lock:
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
            if self._line:
                most = 1
            while len(self._free()) < most and len(self._workers) < self.settings.workers:
                self._spawn()
            taken = sorted(self._free(), key=lambda worker: worker.pid is None)[:most]
            for worker in taken:
                worker.take(holder)
            return taken

    def _free(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.holder is None]

    def _has_free(self) -> bool:
        return len(self._workers) < self.settings.workers or bool(self._free())

    def _spawn(self) -> None:
        while True:
            if self._nursery is None or self._nursery.lost():
                self._drop_nursery()
                self._nursery = Nursery(self.settings)
            try:
                self._workers.append(self._nursery.spawn())
                return
            except (BrokenPipeError, ConnectionResetError):
                self.fail("the nursery ended")

    def _drop_nursery(self) -> None:
        """Its workers are dead or about to be; those that a thread holds are found out by that thread."""
        if self._nursery is not None:
            self._nursery.end()
            self._nursery = None
        for worker in self._free():
            worker.close()
            self._workers.remove(worker)

    def release(self, worker: Worker) -> None:
        """Hand a worker without a job to whoever is next."""
        with self._lock:
            worker.holder = None
            self._lock.notify_all()

    def others_wait(self) -> bool:
        """Whether another thread stands in line for a worker."""
        return bool(self._line)

    def replace(self, worker: Worker, *, kills: int = 0, deaths: int = 0, recycled: int = 0) -> None:
        """Kill a worker, whatever it is doing, and start another in its place; counts why."""
        with self._lock:
            self.kills, self.deaths, self.recycled = self.kills + kills, self.deaths + deaths, self.recycled + recycled
            worker.nursery.kill(worker)
            worker.close()
            self._workers.remove(worker)
            if self._closed:
                raise ValueError("the pool was closed while it was running")
            # a new nursery takes a while: it is started when a job needs it
            if not worker.nursery.lost():
                self._spawn()
            self._lock.notify_all()

    def succeed(self) -> None:
        """A worker has answered: earlier failures to get one were bad luck."""
        self._failed = 0

    def fail(self, reason: str) -> None:
        """Count a worker that was of no use; raises RuntimeError when there were too many in a row."""
        self._failed += 1
        if self._failed > self.settings.workers + ATTEMPTS:
            failed, self._failed = self._failed, 0
            raise RuntimeError(f"{failed} starts of a worker for {self.settings.judge} failed in a row: {reason}")

    def abandon(self, holder: object) -> None:
        """What a `run` that raised still holds: a worker with a job would answer it to the next caller."""
        with self._lock:
            for worker in [worker for worker in self._workers if worker.holder is holder]:
                worker.nursery.kill(worker)
                worker.close()
                self._workers.remove(worker)
            self._lock.notify_all()

    def forget(self) -> None:
        """In the child of a fork: the processes are the parent's, and a thread that is gone may hold the lock."""
        workers, nursery = list(self._workers), self._nursery
        self._begin()
        for worker in workers:
            worker.close()
        if nursery is not None:
            nursery.forget()


def _make(settings: Settings) -> Pool:
    return Pool(
        settings.judge,
        workers=settings.workers,
        deadline=settings.deadline,
        memory=settings.memory,
        recycle=settings.recycle,
    )


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
