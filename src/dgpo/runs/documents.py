"""Logs as JSON: `trainer_state.json`, arrays, JSONL, columns; whole, or up to where they break off."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dgpo.counts import counted
from dgpo.files import loads
from dgpo.runs.names import trains
from dgpo.runs.raw import Raw
from dgpo.runs.settings import of_mapping
from dgpo.runs.values import flat, json_values

_HISTORY = re.compile(r'"(?:log_history|history|logs|metrics)"\s*:\s*\[')


def read_document(text: str) -> Raw | None:
    """The lines of a JSON text; None if it is none.

    `{"log_history": [...]}`, an array of objects, objects one after another (JSONL, pretty-printed or not), or
    an object of equally long lists.
    """
    start = len(text) - len(text.lstrip())
    if not text.startswith(("{", "["), start):
        return None
    try:
        return _whole(loads(text))
    except ValueError:
        return _parts(text, start)


def _whole(found: Any) -> Raw:
    if isinstance(found, list):
        return _of_values(found)
    if found.get("log_history") == []:
        return Raw()  # a state from before the first line
    tables = {name: one for name, inner in found.items() if (one := _table(inner))}
    if own := _columns(found):
        tables.setdefault("columns", own)
    if not tables:
        return _of_values([found])
    # transformers' name first, then what looks like training, then what is longest
    best = max(tables, key=lambda name: (name == "log_history", _trains(tables[name]), len(tables[name])))
    raw = _of_values(tables[best])
    raw.settings = _settings({name: inner for name, inner in found.items() if not isinstance(inner, list)})
    if len(tables) > 1 and best != "log_history":
        raw.remarks.append(f"of {', '.join(map(repr, tables))} in the file, {best!r} is read")
    return raw


def _table(inner: Any) -> list[Any] | None:
    """Rows: an array with objects, or an object of columns; None for anything else."""
    if isinstance(inner, Mapping):
        return _columns(inner)
    rows = isinstance(inner, list) and any(isinstance(one, Mapping) for one in inner)
    return inner if rows else None


def _columns(found: Mapping[str, Any]) -> list[Any] | None:
    """Rows of an object whose arrays are equally long, two values at least; None if it has none."""
    lists = {name: inner for name, inner in found.items() if isinstance(inner, list)}
    lists = {name: inner for name, inner in lists.items() if len(inner) > 1 and not isinstance(inner[0], list | dict)}
    if not lists or len({len(inner) for inner in lists.values()}) > 1:
        return None
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _trains(rows: Sequence[Any]) -> bool:
    names = dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)
    return trains(tuple(names))


def _of_values(values: Sequence[Any]) -> Raw:
    raw = Raw(lines=[flat(one) for one in values if isinstance(one, Mapping)])
    others = [number for number, one in enumerate(values, 1) if not isinstance(one, Mapping)]
    raw.remarks += _left_out(others, "entry")
    return raw


def _parts(text: str, start: int) -> Raw | None:
    """What can be read of a text that is no single document: JSONL, or a document that breaks off."""
    lines = _by_line(text)
    if lines is not None:
        return lines
    outer = _HISTORY.search(text) if text.startswith("{", start) else None
    if outer is not None:
        start = outer.end()
    elif text.startswith("[", start):
        start += 1
    values: list[Any] = []
    end, broken = start, None
    try:
        for one, place in json_values(text, start):
            values.append(one)
            end = place
    except ValueError as error:
        broken = error.args[0]
    if not any(isinstance(one, Mapping) for one in values):
        return None
    rest = len(text) - end
    if text[start - 1 : start] != "[" and broken is not None and rest > 2 * (end - start) / len(values):
        return None  # what follows is no object that breaks off: objects at the top of some other text
    raw = _of_values(values)
    if outer is not None:
        raw.settings = _settings(_scalars(text[: outer.start()]) | _scalars(text[end:]))
    at = len(text) if broken is None else broken
    if broken is not None or outer is not None:
        raw.remarks.append(
            f"the file breaks off or is damaged in line {text.count(chr(10), 0, at) + 1}; "
            f"read the {counted(len(values), 'entry', 'entries')} before that"
        )
    return raw


def _by_line(text: str) -> Raw | None:
    """JSONL; lines that are no object are left out and named. None unless most lines are objects."""
    raw, wrong = Raw(), []
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in numbered:
        try:
            found = loads(line)
        except ValueError:
            wrong.append(number)
            continue
        if isinstance(found, Mapping):
            raw.lines.append(flat(found))
        else:
            wrong.append(number)
    if not raw.lines or len(wrong) > len(raw.lines):
        return None
    if wrong == [numbered[-1][0]]:
        raw.remarks.append(f"line {wrong[0]}, the last, is incomplete and was left out")
    else:
        raw.remarks += _left_out(wrong, "line")
    return raw


def _settings(top: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the history: for transformers' state the batch size is that of one device."""
    found = of_mapping(top)
    if "global_step" in top and "train_batch_size" in found:
        found["per_device_train_batch_size"] = found.pop("train_batch_size")
    return found


def _scalars(text: str) -> dict[str, Any]:
    """The names and numbers at the top of an object, from a text that is no whole object."""
    return dict(re.findall(r'"(\w+)"\s*:\s*([-+.\deE]+)', text))


def _left_out(numbers: Sequence[int], word: str) -> list[str]:
    """A remark on entries or lines that are no objects; none if there are none."""
    if not numbers:
        return []
    if len(numbers) == 1:
        return [f"{word} {numbers[0]} is not a JSON object and was left out"]
    return [f"{len(numbers)} of the {_PLURAL[word]} are not JSON objects and were left out, the first is {numbers[0]}"]


_PLURAL = {"line": "lines", "entry": "entries"}
