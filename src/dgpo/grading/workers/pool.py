"""A pool of processes that run one function of text under a deadline, and can always be killed.

    with Pool(PoolSettings(judge_file="/path/judge.py", deadline=1.5)) as pool:
        pool.run([("1/2", "0.5"), ("9**9**9**9", "1")])   # [Outcome("ok", ...), Outcome("timeout", ...)]

The judge is a Python file with `warm_up()`, called once, and `judge(*strings) -> str`. It runs in workers that are
forks of one fork server (`fork_server.py`); this process only writes, polls and reads. No thread, no signal
handler and no alarm is used here. Nothing but JSON text crosses the pipes.

Linux and macOS; on macOS memory is not capped, and a busy worker whose fork server was killed ends only after its job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from dgpo.grading.workers.allocation import Allocation
from dgpo.grading.workers.batch import Batch, Outcome


class Pool(Allocation):
    """Long-lived workers, started when they are needed; any number of threads may call `run` at once.

    The deadline of a job starts when a worker has received all of it, and limits the wait for the answer: an answer
    that has arrived when this process polls counts. A late worker is killed and replaced at once, a dead one is
    replaced. Threads are served in the order in which they began to wait, and pass a worker on after at most one
    job and 20 ms.

    After `os.fork()` the child starts workers of its own; a pickle carries the settings only. If the fork server is
    killed from outside, the next job starts a new one, and jobs that were under way are run again, once.

    Raises:
        NotImplementedError: neither Linux nor macOS.
    """

    def __reduce__(self) -> tuple[object, ...]:
        return Pool, (self.settings,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, jobs: Sequence[tuple[str, ...]]) -> list[Outcome]:
        """Give each job's strings to the judge; one outcome per job, in order.

        Raises:
            TypeError: a job is not a tuple of strings.
            ValueError: the pool is closed.
            ImportError: the judge's file could not be imported.
            RuntimeError: the fork server or its workers could not be started.
        """
        for index, job in enumerate(jobs):
            if not isinstance(job, tuple) or not all(isinstance(text, str) for text in job):
                raise TypeError(f"jobs[{index}] is {job!r:.200}; expected a tuple of strings")
        if self._closed:
            raise ValueError("the pool is closed")
        return Batch(self, jobs).finish()
