"""A judge for the tests of the pool: "command:argument" does what a parser may do to its process. Reads /proc too."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

WARM: list[int] = []


def warm_up() -> None:
    WARM.append(os.getpid())


def judge(text: str, *others: str) -> str:
    command, _, argument = text.partition(":")
    return COMMANDS[command](argument, *others)


def echo(argument: str, *others: str) -> str:
    return "|".join((argument, *others))


def sleep(argument: str) -> str:
    time.sleep(float(argument))
    return "slept"


def spin(argument: str) -> str:
    while True:
        pass


def stubborn(argument: str) -> str:
    """Everything that a process can do against its end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return spin(argument)


def bigint(argument: str) -> str:
    """One call in C that holds the GIL for minutes."""
    return str((9 ** (9**8)) % 7)


def memory(argument: str) -> str:
    return str(len(bytearray(int(argument))))


def end(argument: str) -> str:
    raise SystemExit(3)


def segv(argument: str) -> str:
    ctypes.string_at(0)
    return "not reached"


def error(argument: str) -> str:
    raise ValueError(argument)


class Alarm(BaseException):
    """As parsers raise for their own timeouts: not an Exception."""


def base_error(argument: str) -> str:
    raise Alarm(argument)


def recurse(argument: str) -> str:
    return recurse(argument) + "x"


def not_text(argument: str) -> str:
    return 1.0  # type: ignore[return-value]


def write(argument: str) -> str:
    with open(argument, "w") as file:
        file.write("x" * 100)
    return "written"


def state(argument: str) -> str:
    """What a worker is: its process, its fork server, where it was warmed, its open descriptors, its streams."""
    descriptors = sorted(int(name) for name in os.listdir("/dev/fd"))
    null = all(os.path.realpath(f"/dev/fd/{fd}") == os.devnull for fd in (0, 1, 2))
    return f"{os.getpid()} {os.getppid()} {WARM[0]} {len(descriptors)} {null} {os.environ['SYMPY_GROUND_TYPES']}"


def alive(pid: int) -> bool:
    """Whether a process runs (Linux); a zombie does not."""
    try:
        return _stat(pid)[0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid: int) -> dict[int, str]:
    """Child processes (Linux) and their states: Z is a zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, parent = _stat(int(entry))
            except FileNotFoundError:
                continue
            if parent == pid:
                found[int(entry)] = state
    return found


def parent(pid: int) -> int:
    """The parent process (Linux): of a worker, its fork server."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except ProcessLookupError:  # it went between the two
        raise FileNotFoundError(pid) from None
    return fields[0], int(fields[1])


def imported(argument: str) -> str:
    return str(argument in sys.modules)


COMMANDS: dict[str, Callable[..., str]] = {
    "echo": echo,
    "sleep": sleep,
    "spin": spin,
    "stubborn": stubborn,
    "bigint": bigint,
    "memory": memory,
    "exit": end,
    "segv": segv,
    "error": error,
    "base_error": base_error,
    "recurse": recurse,
    "not_text": not_text,
    "write": write,
    "state": state,
    "imported": imported,
}
