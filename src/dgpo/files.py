"""Atomic file writes, folder locks, and reading of untrusted text and JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import stat
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dgpo.warning import warn

LARGEST_TEXT = 1 << 29
"""Maximum size of an untrusted text file, in bytes."""


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 `text` to `path`, as `write_lines_atomic` does."""
    return write_lines_atomic(path, [text])


def write_lines_atomic(path: str | os.PathLike[str], lines: Iterable[str]) -> Path:
    """Write UTF-8 `lines`, each with its line ending, to `path`; the old file stays until the new one is complete.

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
        # before the rename: after a crash, the new name must not lead to an empty file
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
    """The target, and a temporary file beside it that replaces it unless the block raises."""
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
        TypeError: `obj` contains something that JSON cannot represent.
        ValueError: it contains NaN or an infinity, which most JSON readers reject.
        OSError: the folder cannot be created or written to.
    """
    return write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, as `parse_json` returns it.

    Raises:
        ValueError: it is not UTF-8 or not JSON; the error names the file.
        OSError: as `read_text` raises.
    """
    try:
        return parse_json(read_text(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of an untrusted UTF-8 file. Pipes and devices, which could block a reader forever, and files that
    could take all memory are refused.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than `LARGEST_TEXT`.
        UnicodeDecodeError: it is not UTF-8.
    """
    _check_readable(path)
    return Path(path).read_text(encoding="utf-8")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of an untrusted file; refuses what `read_text` refuses.

    Raises:
        OSError: as `read_text` raises.
    """
    _check_readable(path)
    return Path(path).read_bytes()


def _check_readable(path: str | os.PathLike[str]) -> None:
    about = os.stat(path)
    if not (
        stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)
    ):  # for a folder, the system raises its own error
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if about.st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"{about.st_size:,} bytes; at most {LARGEST_TEXT:,} are read", str(path))


def parse_json(text: str) -> Any:
    """JSON from an untrusted source: control characters in texts are escaped (`printable`), and integers beyond the
    range of a float become infinite, so that arithmetic with floats does not raise.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    return _tame(loads(text))


def loads(text: str | bytes) -> Any:
    """`json.loads` that raises ValueError only, also if the text is nested too deeply."""
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
    """The text with characters escaped that a terminal would interpret: control characters except tabs and line feeds,
    and those that change the writing direction."""
    if text.isprintable():
        return text
    return "".join(c if c in "\t\n" or not _acts(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """The message of an exception on one printable line; its class if the message is empty."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, where the rest is advice; its class if the message is empty."""
    return printable(str(error).strip().partition("\n")[0].strip()) or type(error).__name__


def shortened(value: object) -> str:
    """The `repr` of a value, truncated to 60 characters."""
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:57]}..."


def _acts(character: str) -> bool:
    # control characters, and lone surrogates, which no UTF-8 terminal can print
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


# Unicode's embeddings, overrides and isolates, and the three directional marks
_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)}


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one of the same file system, replacing existing files atomically."""
    # listed before the first move, which changes the folder that is walked
    for path in [path for path in source.rglob("*") if path.is_file()]:
        to = target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        path.replace(to)


class FolderInUse(ValueError):
    """Another process writes into the folder."""


class FolderLock:
    """An exclusive lock on a folder, held while the context is open.

    The lock is `flock` on a file in the folder, which the kernel releases however the process ends: there are no stale
    locks, and the file alone locks nothing. It names the activity, process id and machine of the holder, for the error
    of others. Forked processes do not share the lock. On NFS it works between machines if the server supports locks.
    On file systems without locks, and on Windows, a warning is given and nothing is locked.

    Args:
        folder: created if it does not exist.
        doing: what the holder does, for the error: "training into".
        name: of the file. Uploads to a model hub skip the default, which begins with an underscore.

    Raises:
        FolderInUse: on entering, if another process, or another lock of this process, holds the folder.
        OSError: the folder or the file cannot be created.
    """

    def __init__(self, folder: str | os.PathLike[str], doing: str, name: str = "_run.lock") -> None:
        self.folder, self.doing, self.name = Path(folder), doing, name
        self._file: BinaryIO | None = None

    @staticmethod
    def held(folder: str | os.PathLike[str]) -> bool:
        """Whether this process holds a lock on the folder."""
        return any(os.path.realpath(folder) == where for where in _held.values())

    def fileno(self) -> int:
        """The descriptor of the lock's file. A child process that inherits it holds the lock until it ends, too."""
        assert self._file is not None
        return self._file.fileno()

    def __enter__(self) -> FolderLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        # not "w", which would erase the holder's name before the lock is ours
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
        # the file stays: if it were removed, two processes could hold locks on two files of this name
        del _held[self._file]
        self._file.close()
        self._file = None

    def _take(self, file: BinaryIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            warn(f"this system has no flock: {str(self.folder)!r} is not locked against a second run")
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
            warn(
                f"the file system of {str(self.folder)!r} has no locks ({error.strerror}): the folder is not locked "
                "against a second run"
            )
            return
        file.truncate(0)
        file.write(f"{self.doing}: process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()


_held: dict[BinaryIO, str] = {}


def _let_go_in_a_fork() -> None:
    """Close the files in a forked child, which would otherwise keep the lock after its owner has ended."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_a_fork)
