"""Files that are either whole or not there: a reader never sees half of one, whenever the writer is killed."""

from __future__ import annotations

import json
import os
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
