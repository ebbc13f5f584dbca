"""Files that are either whole or not there, folders that one process at a time writes into, and foreign JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import stat
import unicodedata
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_TEXT = 1 << 29
"""Bytes of a foreign text file that are read into memory at most."""


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 `text` to `path`, as `write_lines_atomic` does."""
    return write_lines_atomic(path, [text])


def write_lines_atomic(path: str | os.PathLike[str], lines: Iterable[str]) -> Path:
    """Write UTF-8 `lines`, which end as they should, to `path`; the old file stays until the new one is complete.

    The text goes to a temporary file in the same folder, which is created (a rename is only atomic within one file
    system), is flushed to the disk and then renamed over `path`. If anything fails, the temporary file is removed and
    the error raised.

    Returns:
        `path`.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    with _replacing(path) as (target, temporary), open(temporary, "x", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    return target


def write_bytes_atomic(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Write `content` to `path`, as `write_lines_atomic` does."""
    with _replacing(path) as (target, temporary), open(temporary, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return target


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """The target and a temporary file beside it, which takes its place unless the block raises."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile: its files are private to the user (0600), and the rename would keep that
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield target, temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> Path:
    """Write `obj` as indented JSON, as `write_text_atomic` does.

    Raises:
        TypeError: `obj` holds something that JSON has no form for.
        ValueError: it holds NaN or an infinity, which most JSON readers refuse.
        OSError: the folder cannot be created or written to.
    """
    return write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds, as `parse_json` returns it.

    Raises:
        ValueError: it is not UTF-8 or not JSON; names the file.
        OSError: it cannot be read, as `read_text` says.
    """
    try:
        return parse_json(read_text(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """What a foreign UTF-8 file holds. A pipe or a device could keep a reader forever, and a sparse file of a few bytes
    on the disk take all memory.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `LARGEST_TEXT`.
        UnicodeDecodeError: it is not UTF-8.
    """
    about = os.stat(path)
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):  # the error about a folder is the system's
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if about.st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"{about.st_size:,} bytes; at most {LARGEST_TEXT:,} are read", str(path))
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """JSON from an untrusted source: control characters in its texts are escaped (`printable`), and integers beyond the
    range of a float are infinite, so that arithmetic on them fails as little as on floats.

    Raises:
        ValueError: it is no JSON, or is nested too deeply to be read.
    """
    return _tame(loads(text))


def loads(text: str | bytes) -> Any:
    """`json.loads`, whose one exception is ValueError, also for what is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _tame(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(name): _tame(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_tame(inner) for inner in value]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int) and abs(value) >= 1 << 1023:
        return math.inf if value > 0 else -math.inf
    return value


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would obey and not show: control characters (but tabs and
    line feeds), and those that change the direction of what follows."""
    if text.isprintable():
        return text
    return "".join(c if c in "\t\n" or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(error: Exception) -> str:
    """What an exception says, fit for one line of a terminal; its class where it says nothing."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def shortened(value: object) -> str:
    """The `repr` of a value from a file, in at most 60 characters."""
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one of the same file system, over what is there; each appears whole."""
    for path in [path for path in source.rglob("*") if path.is_file()]:
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.replace(to)


class FolderInUse(ValueError):
    """Another process writes into the folder."""


class FolderLock:
    """Keeps other processes out of a folder, for as long as the context is open or the process lives.

    The lock is `flock` on a file in the folder, which the kernel takes back however the process ends: no stale lock
    stays behind, and the file means nothing by itself. It says what the process does, its number and machine, for
    the message to others. Processes forked meanwhile do not share the lock. On NFS it works between machines where the
    server supports locks; where a file system has none, or on Windows, one warning says so and nothing is locked.

    Args:
        folder: is created.
        doing: what the holder does, for the message: "training into".
        name: of the file. The default begins with an underscore, which uploads to a model hub leave out.

    Raises:
        FolderInUse: on entering, where another process, or another lock of this one, holds the folder.
        OSError: the folder or the file cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], doing: str, name: str = "_run.lock") -> None:
        self.folder, self.doing, self.name = Path(folder), doing, name
        self._file: BinaryIO | None = None

    @staticmethod
    def held(folder: str | os.PathLike[str]) -> bool:
        """Whether this process holds a lock on the folder."""
        return any(os.path.realpath(folder) == where for where in _held.values())

    def __enter__(self) -> FolderLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.folder / self.name, "a+b")
        try:
            self._take(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        _held[file] = os.path.realpath(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        del _held[self._file]
        self._file.close()
        self._file = None

    def _take(self, file: BinaryIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            warnings.warn(
                f"this system has no flock: nothing keeps a second run out of {str(self.folder)!r}", stacklevel=3
            )
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            doing, _, holder = printable(file.read(200).decode("utf-8", "replace")).strip().partition(": ")
            raise FolderInUse(
                f"another process is {doing or self.doing} {str(self.folder)!r}{f' ({holder})' if holder else ''}; "
                "wait for it, or use another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            warnings.warn(
                f"the file system of {str(self.folder)!r} has no locks ({error.strerror}): nothing keeps a second run "
                "out of it",
                stacklevel=3,
            )
            return
        file.truncate(0)
        file.write(f"{self.doing}: process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()


_held: dict[BinaryIO, str] = {}


def _let_go_in_a_fork() -> None:
    """A fork shares the open file, and with it the lock, which would outlive the process that took it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_a_fork)
