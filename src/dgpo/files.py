"""Files that are either whole or not there, and JSON from files that somebody else wrote."""

from __future__ import annotations

import json
import math
import os
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        OSError: it cannot be read.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error


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


def _acts(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS


_DIRECTIONS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
