"""Logs as CSV: of a logger, or exported from W&B."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from dgpo.counts import counted
from dgpo.files import shortened
from dgpo.runs.raw import Raw
from dgpo.runs.values import flat

_SEPARATORS = ",\t;"
_OF_RUN = re.compile(r"(.+) - ((?:[\w.@-]+/)*[\w.@() -]+?)((?:__MIN|__MAX)?)")
"""The columns of W&B's export of a chart: `RUN - METRIC`, with the extremes of what it averaged."""


def read_table(text: str) -> Raw | None:
    """The rows of a table with a header; None if the text is none.

    Raises:
        ValueError: it has columns of several runs; names them.
    """
    first = text.lstrip("\n").partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    if first.count(separator) < 1 or "{" in first:
        return None
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error:
        return None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if not numbered:
        return None
    header = [name.strip() for name in numbered[0][1]]
    if len(set(header)) < len(header) or not all(re.search(r"[A-Za-z_]", name) for name in header if name):
        return None
    raw, wrong = Raw(), []
    for number, row in numbered[1:]:
        if len(row) != len(header):
            wrong.append(number)
            continue
        pairs = zip(header, row, strict=True)
        raw.lines.append(flat({name: cell for name, cell in pairs if name and cell.strip()}))
    if len(wrong) > len(raw.lines) or not _has_numbers(raw):
        return None
    if wrong == [numbered[-1][0]]:
        raw.remarks.append(f"line {wrong[0]}, the last, is incomplete and was left out")
    elif wrong:
        raw.remarks.append(
            f"left out {counted(len(wrong), 'line')} with another number of columns, the first is line {wrong[0]}"
        )
    return _of_one_run(raw, header)


def _has_numbers(raw: Raw) -> bool:
    """Whether most cells are numbers: a text with commas is no table."""
    cells = [one for line in raw.lines for one in line.values()]
    return 2 * sum(isinstance(one, int | float) for one in cells) > len(cells)


def _of_one_run(raw: Raw, header: Sequence[str]) -> Raw:
    """Drop the run from the names of an export of W&B."""
    parts = {name: match for name in header if (match := _OF_RUN.fullmatch(name))}
    runs = list(dict.fromkeys(match[1] for match in parts.values()))
    if not runs or len(parts) < len([name for name in header if name]) - 2:
        return raw
    if len(runs) > 1:
        raise ValueError(
            f"the table holds {counted(len(runs), 'run')} ({shortened(', '.join(runs))}); expected one: export each"
        )
    for line in raw.lines:
        for name, match in parts.items():
            if name in line:
                number = line.pop(name)
                if not match[3]:
                    line[match[2]] = number
    return raw
