"""Appending a line of JSON to a file that a killed process may have left with half a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from dgpo.runs.schema import in_words


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append `row` as one line of JSON, NaN and infinities as words; an incomplete last line is dropped first.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(in_words(row)) + "\n"
    # a+: the end is read before the line is appended
    with open(path, "ab+") as file:
        _drop_half_a_line(file)
        file.write(line.encode())


def _drop_half_a_line(file: IO[bytes]) -> None:
    """Truncate an incomplete last line, which a killed writer leaves behind."""
    end = file.seek(0, os.SEEK_END)
    start = end
    while start > 0:
        start = max(0, start - 4096)
        file.seek(start)
        line_feed = file.read(min(4096, end - start)).rfind(b"\n")
        if line_feed >= 0:
            start += line_feed + 1
            break
    if start < end:
        file.truncate(start)
