"""Reading the `metrics.jsonl` of a run folder; `reading.py` reads the logs of other trainers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dgpo.files import parse_json, read_text
from dgpo.runs.schema import in_numbers

Line = dict[str, Any]


def read_metrics(path: str | os.PathLike[str], *, leave_out: Callable[[int, str], None] | None = None) -> list[Line]:
    """The lines of a `metrics.jsonl`, in order.

    After a resume from a checkpoint, lines of later steps that were logged before it are dropped. So is an incomplete
    last line, which a killed writer leaves behind.

    Args:
        path: the file.
        leave_out: called for a line that is not a JSON object or has no step, with its number and what is wrong; the
            line is then left out. Without it, such a line is an error.

    Raises:
        ValueError: if the file is not UTF-8, or has such a line and there is no `leave_out`; names the line.
        OSError: if the file cannot be read.
    """
    try:
        # not splitlines: a JSON text may hold U+2028 and the like as they are
        lines = read_text(path).removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    rows: list[Line] = []
    for number, line in enumerate(lines, 1):
        try:
            row = _row(line)
        except ValueError as error:
            if number == len(lines) and not line.rstrip().endswith("}"):
                break
            if leave_out is None:
                raise ValueError(f"{str(path)!r}, line {number} {error}") from error
            leave_out(number, f"{str(path)!r}, line {number} {error}")
            continue
        if row.get("event") == "begin":  # drop the steps after the checkpoint that training resumes from
            rows = [old for old in rows if "event" in old or step_of(old) <= step_of(row)]
        rows.append(row)
    return rows


def _row(line: str) -> Line:
    try:
        row = in_numbers(parse_json(line))
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"holds a {type(row).__name__}; expected an object")
    try:
        step_of(row)
    except ValueError as error:
        raise ValueError(f"has {error}") from error
    return row


def with_steps(lines: Iterable[Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(step, line) of each. Raises ValueError for a line that is not a mapping or has no step, with its number."""
    for number, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            raise ValueError(f"entry {number} of the log is a {type(line).__name__}; expected an object")
        try:
            yield step_of(line), line
        except ValueError as error:
            raise ValueError(f"entry {number} of the log has {error}") from error


def step_of(row: Mapping[str, Any]) -> int:
    """The optimiser step of a log line: `step`, or `_step` as W&B writes it.

    Raises:
        ValueError: if it is not an integer; names the value.
    """
    step = row.get("step", row.get("_step"))
    number = isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step)
    # from 2^53 on, a float does not tell neighbouring integers apart
    if not number or step != int(step) or abs(step) >= 2**53:
        raise ValueError(f"step = {step!r}; expected an integer under 'step'")
    return int(step)
