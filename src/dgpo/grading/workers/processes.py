"""The parent's ends of the processes of a `Pool`; `fork_server.py` describes the messages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass
from itertools import count
from typing import Any

from dgpo.fields import Checked, integer, number
from dgpo.grading.workers import fork_server
from dgpo.grading.workers.fork_server import CHUNK, FRAME

START_LIMIT = 60
"""Seconds allowed for importing the judge, and for starting one worker: both are slow on a busy machine."""
ENVIRONMENT = {
    # gmpy2 cannot be interrupted in the middle of a number, and aborts the process when it has no memory
    "SYMPY_GROUND_TYPES": "python",
    # the order of sets may decide what a parser finds first: the same text gets the same answer in every run
    "PYTHONHASHSEED": "0",
    # a process with threads must not fork
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True)
class PoolSettings(Checked):
    """The settings of a `Pool`.

    Args:
        judge_file: absolute path of the judge; see `Pool`.
        workers: maximum number of processes.
        deadline: seconds per job.
        memory: bytes of address space of one worker (Linux).
        recycle: number of answers after which a worker is replaced.

    Raises:
        ValueError: a setting is out of its range, or `judge_file` is not a file.
    """

    judge_file: str
    workers: int = integer(2, "[1, inf)")
    deadline: float = number(1.5, "(0, inf)")
    memory: int = integer(2 * 2**30, f"[{256 * 2**20}, inf)")
    recycle: int = integer(1000, "[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not os.path.isfile(self.judge_file):
            raise ValueError(f"judge_file = {self.judge_file!r} is not a file")


class Worker:
    """One worker: the socket to it, and the job that it has."""

    def __init__(self, server: ForkServer, number: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.server, self.number, self.fd = server, number, connection.fileno()
        self.pid: int | None = None  # known when it is ready
        self.job: int | None = None
        self.holder: object | None = None  # the one `run` that may use it now
        self.answered = 0
        self.taken = self.since = 0.0
        self._connection = connection
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()

    def take(self, holder: object) -> None:
        """Reserve the worker for `holder`."""
        self.holder = holder
        self.taken = self.since = time.monotonic()

    def write(self, job: int, strings: tuple[str, ...]) -> bool:
        """Begin to send a job; True if all of it is written. OSError: the worker has ended, and got nothing."""
        self._outgoing = memoryview(fork_server.packed(strings))
        written = self.flush()
        # only now: if the write raised, the worker has no job and nothing is repeated
        self.job = job
        return written

    def flush(self) -> bool:
        """Send more of the job; True if all of it is written. `since` is when the worker last took some."""
        try:
            self._outgoing = self._outgoing[self._connection.send(self._outgoing) :]
        except BlockingIOError:
            return False
        self.since = time.monotonic()
        return not self._outgoing

    def read(self) -> dict[str, Any] | None:
        """Its message; None if it has not arrived completely. EOFError if the worker has ended."""
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # it ended with some of a job unread
            data = b""
        if not data:
            raise EOFError
        self._incoming += data
        reply: dict[str, Any] | None = fork_server.unpacked(self._incoming)
        if reply is not None:
            self._incoming.clear()
        return reply

    def close(self) -> None:
        """Close the socket; the fork server ends the process."""
        self._connection.close()


class ForkServer:
    """The fork server process; it ends with this object at the latest.

    Raises:
        ImportError: the judge's file could not be imported.
        RuntimeError: the fork server could not be started, or the judge not warmed up.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_LIMIT)
        self._numbers = count()
        with theirs, tempfile.TemporaryFile() as messages:
            self._process = subprocess.Popen(
                # -P: the folder of the script must not shadow modules of the standard library
                [sys.executable, "-P", fork_server.__file__, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                # Ctrl-C goes to the terminal's process group: the parent decides when the workers end
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                env={**os.environ, **ENVIRONMENT},
            )
            # a function and not a method, which would keep this object alive
            self.end = weakref.finalize(self, _end, self._process, self._control, os.getpid())
            # with our copy open, the end of the fork server would not end the stream
            theirs.close()
            try:
                self._start(settings)
            except OSError as error:
                self.end()
                messages.seek(0)
                said = messages.read().decode(errors="replace").strip()[-2000:]
                raise RuntimeError(
                    f"the fork server of {settings.judge_file} did not start: {error!r}. {said}"
                ) from error
            except BaseException:
                self.end()
                raise

    def _start(self, settings: PoolSettings) -> None:
        hello = {
            # absolute: "" means the working directory, which may change
            "path": [os.path.abspath(entry) for entry in sys.path],
            "judge": settings.judge_file,
            "memory": settings.memory,
            "limit": START_LIMIT,
        }
        fork_server.send(self._control, hello)
        reply = fork_server.receive(self._control)
        if reply is None:
            raise ConnectionResetError("it ended without a message")
        # only few, tiny messages follow; on a socket with a timeout, MSG_DONTWAIT would wait
        self._control.settimeout(None)
        error = reply.get("error")
        if error is not None:
            # errors cross the socket as text
            kind = ImportError if error.startswith(("ImportError", "ModuleNotFoundError")) else RuntimeError
            raise kind(f"{settings.judge_file} could not be loaded: {error}")

    def spawn(self) -> Worker:
        """A new worker, ready some milliseconds later.

        Raises:
            BrokenPipeError, ConnectionResetError: the fork server has ended.
        """
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [FRAME.pack(b"S", number)], [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return Worker(self, number, ours)

    def kill(self, worker: Worker) -> None:
        """SIGKILL to a worker, whatever it is doing, without a wait for its end."""
        if not self.lost():
            try:
                self._control.sendall(FRAME.pack(b"K", worker.number))
            except (BrokenPipeError, ConnectionResetError):
                self.end()  # it was killed from outside just now, and the workers with it

    def lost(self) -> bool:
        """Whether the fork server has ended. Detected before the ends of its workers."""
        if self.end.alive and self._process.poll() is None:
            try:
                # it sends nothing after its start: readable means closed
                return not self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:  # reset by its end, or closed by another thread that saw it
                return True
        return True

    def forget(self) -> None:
        """In a forked child: release it without ending it."""
        self._control.close()
        self._process.returncode = 0  # not a child of this process: nothing to wait for


def _end(process: subprocess.Popen[bytes], control: socket.socket, owner: int) -> None:
    if os.getpid() != owner:  # the exit of a fork
        return
    try:
        # a close alone is not seen while a fork of this process still holds the socket
        control.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended before: not connected any more
        process.kill()
    control.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
