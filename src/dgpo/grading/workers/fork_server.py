"""The process that owns the workers of a `Pool`, as a script; the parent imports the format of its messages only.

It imports the judge once and then forks workers on request: a fork of this small, single-threaded process takes
milliseconds, a new interpreter that imports a parser takes most of a second. It needs the standard library only
(`import dgpo` would load torch). Text of a model is read in the workers only, never here.

    python -P fork_server.py CONTROL_FD PARENT_PID

Control socket (a Unix stream): first one message from the parent, {"path", "judge", "memory", "limit"}, answered by
{"ready": true} or {"error": text}; from then on frames of `FRAME` from the parent, without an answer: spawn (comes with
the worker's end of a socket pair) and kill, each with the number that the parent gave to the worker. Worker socket: the
worker says {"pid"} (or {"error"} if it could not confine itself), then reads lists of strings and answers each with
{"value": text, "seconds"} or {"error": text, "seconds", "spent"}; after `spent` it ends. A message is its length in
four bytes, big-endian, and JSON.

The fork server ends, and its workers before it, when the control socket closes or its parent is no longer PARENT_PID (a
fork of the parent may keep the socket open). A worker ends when its socket closes; on Linux also when the fork
server does, at once and whatever it is doing. Elsewhere (macOS) there is neither that nor a cap on memory.

This is not a sandbox for hostile code: a worker cannot write to files or dump core, but it can open files and sockets.
The judge must never evaluate text as code.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

if os.name == "posix":  # elsewhere the parent may import this module, but starts no server
    import resource

FRAME = struct.Struct("!cI")
"""A command to the fork server, S for spawn or K for kill, and the number of a worker."""
LENGTH = struct.Struct("!I")
"""In front of every message: its bytes."""
CHUNK = 65536
PR_SET_PDEATHSIG = 1
LINUX = sys.platform == "linux"

Judge = Callable[..., str]


def main(control: socket.socket, parent: int) -> None:
    """Load the judge, report it, and serve until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the mask of the parent's thread is inherited through exec, and could block the alarm below
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    hello = receive(control)
    if hello is None:
        return
    # a judge that hangs during its import must not outlive the parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(hello["limit"])
    try:
        judge = load(hello["path"], hello["judge"])
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent raises it
        send(control, {"error": f"{type(error).__name__}: {error}"})
        return
    signal.alarm(0)
    silence()
    # nothing allocated so far is garbage: a collection in a worker must not copy its pages
    gc.collect()
    gc.freeze()
    send(control, {"ready": True})
    serve(control, judge, hello["memory"], parent)


def load(path: list[str], file: str) -> Judge:
    """The function `judge` of a file, after its `warm_up()`."""
    # the parent's, so that the judge imports the same packages
    sys.path[:] = path
    # as a package over its folder: the judge can import the files beside it, and the package above is not run
    spec = importlib.util.spec_from_file_location(
        "dgpo_judge", file, submodule_search_locations=[os.path.dirname(file)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # before it runs: its relative imports look up the package there
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.warm_up()
    judge: Judge = module.judge
    return judge


def serve(control: socket.socket, judge: Judge, memory: int, parent: int) -> None:
    """Spawn, kill and reap until the control socket or the parent is gone; no worker and no zombie is left."""
    children: dict[int, int] = {}  # the parent's number of a worker -> its process
    dying: set[int] = set()
    poller = select.poll()
    poller.register(control, select.POLLIN)
    try:
        while os.getppid() == parent:
            # ms: soon if a killed worker has to be reaped, otherwise often enough to notice a lost parent
            if poller.poll(10 if dying else 1000):
                data, descriptors, _, _ = socket.recv_fds(control, FRAME.size, 1)
                if len(data) < FRAME.size:  # the parent writes a frame at once: this is its end
                    break
                command, number = FRAME.unpack(data)
                if command == b"S":
                    spawn(children, number, descriptors[0], control, judge, memory)
                elif number in children:
                    os.kill(children[number], signal.SIGKILL)
                    dying.add(children[number])
            reap(children, dying)
    finally:
        for pid in children.values():
            os.kill(pid, signal.SIGKILL)
        for pid in children.values():
            os.waitpid(pid, 0)


def spawn(children: dict[int, int], number: int, fd: int, control: socket.socket, judge: Judge, memory: int) -> None:
    """Fork one worker that talks over `fd`."""
    connection = socket.socket(fileno=fd)
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        send(connection, {"error": f"no worker could be forked: {error}"})
    else:
        if pid == 0:
            try:
                # the parent sees the end of the fork server only if no worker keeps this socket open
                control.close()
                work(connection, judge, memory, server)
            finally:
                # no exit handlers and no buffers of the fork server
                os._exit(0)
        children[number] = pid
    connection.close()


def reap(children: dict[int, int], dying: set[int]) -> None:
    """Collect the workers that ended, killed or by themselves."""
    for number, pid in list(children.items()):
        # a process stays in `children` until it is collected here, so that a kill never meets a number that was reused
        if os.waitpid(pid, os.WNOHANG)[0]:
            del children[number]
            dying.discard(pid)


def work(connection: socket.socket, judge: Judge, memory: int, server: int) -> None:
    """A worker: one list of strings after the other, until the socket closes."""
    try:
        confine(connection.fileno(), memory, server)
    except (OSError, ValueError) as error:
        send(connection, {"error": f"no worker could be confined: {error}"})
        return
    send(connection, {"pid": os.getpid()})
    while (strings := receive(connection)) is not None:
        started = time.perf_counter()
        reply: dict[str, Any]
        try:
            value = judge(*strings)
            if not isinstance(value, str):
                raise TypeError(f"the judge returned {type(value).__name__}, expected str")
            reply = {"value": value}
        except SystemExit:
            return
        except BaseException as error:  # noqa: BLE001 - parsers raise RecursionError, MemoryError, their own timeouts
            # after a MemoryError, the state of the libraries underneath is unknown
            reply = {"error": f"{type(error).__name__}: {error}"[:500], "spent": isinstance(error, MemoryError)}
        reply["seconds"] = time.perf_counter() - started
        send(connection, reply)
        if reply.get("spent"):
            return


def confine(fd: int, memory: int, server: int) -> None:
    """Drop what a worker does not need, before it reads the first text."""
    sys.dont_write_bytecode = True
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) != fd:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                continue
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if LINUX:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        # a cap above the hard limit would be refused
        cap = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    # the fork server may have ended before that request
    if os.getppid() != server:
        os._exit(0)


def silence() -> None:
    """Discard further output. Until now it went to a file that the parent shows if the start fails."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def packed(message: object) -> bytes:
    """One message: its length, and JSON."""
    body = json.dumps(message).encode()
    return LENGTH.pack(len(body)) + body


def unpacked(data: bytearray) -> Any:
    """The message that has arrived; None if there is more of it to come."""
    if len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
        return None
    return json.loads(data[LENGTH.size :])


def send(connection: socket.socket, message: object) -> None:
    """Write one message."""
    connection.sendall(packed(message))


def receive(connection: socket.socket) -> Any:
    """The next message, None at the end. The peer waits for an answer to each, so that no two are read together."""
    data = bytearray()
    while (message := unpacked(data)) is None:
        more = connection.recv(CHUNK)
        if not more:
            return None
        data += more
    return message


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
