"""Run the cells of a study as processes, some at a time, so that any of it can be killed and continued.

A cell's folder is locked by the process that runs it and by whoever started that: a second `dgpo compare` on the same
study, or on another machine with the same disk, takes the cells that nobody else runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

from dgpo.comparison.cells import CellFolder, Progress, State
from dgpo.files import FolderInUse

POLL = 0.2
"""Seconds between two looks at the processes."""
RETRY = 5.0
"""Seconds until a cell is tried again that another process holds."""
KILLED = (
    signal.SIGINT,
    signal.SIGTERM,
    *(getattr(signal, name) for name in ("SIGKILL", "SIGHUP") if hasattr(signal, name)),
)
"""Signals that somebody sends: the run goes on at the next call. Any other end but exit code 0 is a failure."""


class Trainer(Protocol):
    """How a cell is run."""

    def command(self, folder: CellFolder) -> list[str]:
        """The command that begins or continues it; may clear the folder."""

    def finished(self, folder: CellFolder) -> bool:
        """Whether a process with exit code 0 got to the end, and was not stopped before."""

    def tidy(self, folder: CellFolder) -> None:
        """Delete what a finished run no longer needs."""


class Watcher(Protocol):
    """Is told what happens."""

    def began(self, folder: CellFolder, resumed: bool) -> None: ...
    def ended(self, folder: CellFolder, progress: Progress) -> None: ...
    def waiting(self, folder: CellFolder) -> None: ...
    def stopping(self, running: int, first: bool) -> None: ...
    def tick(self, runner: Runner) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Stopped on request; everything that ran has saved a checkpoint, or was killed."""


@dataclass
class _Job:
    folder: CellFolder
    process: subprocess.Popen[bytes]
    before: Progress
    device: str | None
    held: ExitStack
    began: float = field(default_factory=time.monotonic)


class Runner:
    """Runs cells.

    Args:
        trainer: how a cell is run.
        watcher: is told what happens.
        jobs: cells at a time.
        devices: what CUDA_VISIBLE_DEVICES is set to, one of them for each cell at a time; empty leaves it alone.
        threads: what OMP_NUM_THREADS is set to, where the environment does not have it.

    Attributes:
        folders: all cells that this call is about, in order.
        progress: name of a cell -> how far it was when it was last looked at.
    """

    def __init__(self, trainer: Trainer, watcher: Watcher, *, jobs: int, devices: Sequence[str], threads: int) -> None:
        self._trainer, self._watcher = trainer, watcher
        self.jobs, self._devices, self._threads = jobs, list(devices), threads
        self.folders: list[CellFolder] = []
        self.progress: dict[str, Progress] = {}
        self._jobs: list[_Job] = []
        self._again: dict[str, float] = {}
        # signals so far, and those that were acted on
        self._signalled, self._heeded = 0, 0

    @property
    def running(self) -> dict[str, float]:
        """Name of a cell -> seconds since its process began."""
        now = time.monotonic()
        return {job.folder.cell.name: now - job.began for job in self._jobs}

    def run(self, folders: Sequence[CellFolder]) -> None:
        """Run those cells that are not finished; returns when each has ended, one way or another.

        A cell that failed in an earlier call is tried again, from its last checkpoint. On Ctrl-C, SIGTERM or SIGHUP
        every process is asked to save a checkpoint and stop; a second one kills them.

        Raises:
            Interrupted: it was stopped so.
            ValueError: a folder holds another run (`CellFolder.check`); raised before any process begins.
            OSError: a folder cannot be written to.
        """
        self.folders = [*self.folders, *folders]
        for folder in folders:
            folder.check()
            self.progress[folder.cell.name] = folder.progress()
        waiting = [folder for folder in folders if self.progress[folder.cell.name].state != "finished"]
        with self._signals():
            try:
                while waiting or self._jobs:
                    while waiting and len(self._jobs) < self.jobs and not self._signalled:
                        if (place := self._begin_one(waiting)) is None:
                            break
                        del waiting[place]
                    self._heed()
                    self._look()
                    if self._signalled and not self._jobs:
                        raise Interrupted
                    self._watcher.tick(self)
                    time.sleep(POLL)
            finally:
                # an error of ours must not leave processes behind that nobody watches
                for job in self._jobs:
                    job.process.kill()
                    job.process.wait()
                    self._end(job)
                self._jobs = []

    def _begin_one(self, waiting: list[CellFolder]) -> int | None:
        """Begin the first cell that nobody else runs; its place in the list, or None if there is none."""
        now = time.monotonic()
        for place, folder in enumerate(waiting):
            name = folder.cell.name
            if self._again.get(name, 0.0) > now:
                continue
            with ExitStack() as held:
                lock = folder.lock()
                try:
                    held.enter_context(lock)
                except FolderInUse:
                    if name not in self._again:
                        self._watcher.waiting(folder)
                    self._again[name] = now + RETRY
                    self.progress[name] = folder.progress()
                    continue
                # another process may have run it since
                folder.check()
                before = self.progress[name] = folder.progress()
                if before.state != "finished":
                    self._jobs.append(self._begin(folder, before, lock.fileno(), held.pop_all()))
            return place
        return None

    def _begin(self, folder: CellFolder, before: Progress, lock: int, held: ExitStack) -> _Job:
        command = self._trainer.command(folder)
        folder.write_config()
        progress = replace(before, state="running", code=None, starts=before.starts + 1)
        folder.save(progress)
        self.progress[folder.cell.name] = progress
        taken = [job.device for job in self._jobs]
        # the device with the fewest cells
        device = min(self._devices, key=taken.count) if self._devices else None
        environment = {"OMP_NUM_THREADS": str(self._threads), **os.environ, "PYTHONUNBUFFERED": "1"}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        more: dict[str, Any] = {}
        if os.name != "nt":
            # a session of its own: Ctrl-C reaches us alone, and we pass it on once. The lock is inherited, so that the
            # folder stays locked if we are killed and the run is not
            more = {"start_new_session": True, "pass_fds": (lock,)}
        with open(folder.log_file, "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, **more
            )
        self._watcher.began(folder, before.starts > 0)
        return _Job(folder, process, before, device, held)

    def _look(self) -> None:
        for job in [job for job in self._jobs if job.process.poll() is not None]:
            self._jobs.remove(job)
            self._end(job)

    def _end(self, job: _Job) -> None:
        code = job.process.returncode
        seconds = job.before.seconds + time.monotonic() - job.began
        progress = Progress(
            state=self._state(job.folder, code), code=code, seconds=seconds, starts=job.before.starts + 1
        )
        job.folder.save(progress)
        if progress.state == "finished":
            self._trainer.tidy(job.folder)
        job.held.close()
        self.progress[job.folder.cell.name] = progress
        self._watcher.ended(job.folder, progress)

    def _state(self, folder: CellFolder, code: int) -> State:
        if code == 0:
            return "finished" if self._trainer.finished(folder) else "stopped"
        # 128 + SIGINT: interrupted before it could save anything
        return "stopped" if self._signalled or -code in KILLED or code == 130 else "failed"

    # --- stopping ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        # elsewhere Python allows no handlers
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        before = {n: signal.signal(n, self._request) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # nothing more in a handler, which may have interrupted a `print`
        self._signalled += 1

    def _heed(self) -> None:
        if self._signalled == self._heeded:
            return
        first, self._heeded = self._heeded == 0, self._signalled
        self._watcher.stopping(len(self._jobs), first)
        for job in self._jobs:
            if job.process.poll() is None:
                job.process.send_signal(signal.SIGINT) if first else job.process.kill()
