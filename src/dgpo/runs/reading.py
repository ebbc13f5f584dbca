"""Reads the log of any trainer: recognises the format by the content, assigns steps, and says what was left out."""

from __future__ import annotations

import codecs
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo.counts import counted
from dgpo.files import read_bytes, shortened
from dgpo.runs.console import read_console
from dgpo.runs.documents import read_document
from dgpo.runs.events import is_event_file, read_events
from dgpo.runs.names import PLACES, STEPS
from dgpo.runs.raw import Raw, only_evaluation, summary
from dgpo.runs.settings import of_mapping
from dgpo.runs.tables import read_table
from dgpo.runs.values import Line

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EVALUATION = {"eval", "val", "valid", "validation", "test", "evaluation"}
_KINDS = ("split", "mode", "phase", "stage", "kind", "type")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A log as it was read.

    Attributes:
        lines: with an integer `step` each, and events where training went on from an earlier step.
        remarks: what was left out or had to be guessed, one sentence each.
        settings: of the run, in the names of TRL; only what the log tells.
    """

    lines: list[Line]
    remarks: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def read_log(path: str | os.PathLike[str]) -> Reading:
    """The log in a file, in any of these formats, recognised by the content:

    transformers' `trainer_state.json`, JSON arrays, JSONL, the console output of TRL, ms-swift, OpenRLHF, slime, SkyRL,
    verl and prime-rl, verl's and prime-rl's file loggers, CSV, and TensorBoard's event files. A file that breaks off is
    read up to there.

    Raises:
        ValueError: it is none of these; says what was found.
        OSError: it cannot be read.
        ModuleNotFoundError: it is an event file, and tensorboard is not installed.
    """
    file = Path(path)
    if is_event_file(file):
        return finished(read_events([file]))
    text = _text(file)
    try:
        raw = read_document(text) or read_table(text) or read_console(text)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    if raw is None or not raw.lines:
        raise ValueError(f"{str(path)!r} cannot be read as a log: {_seen(text)}")
    try:
        return finished(raw)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def _text(file: Path) -> str:
    data = read_bytes(file)
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:4096]:
        raise ValueError(f"{str(file)!r} is not UTF-8 text, and no event file of TensorBoard")
    # a killed writer may leave half a character, and a terminal anything
    text = data.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _seen(text: str) -> str:
    if not text.strip():
        return "it is empty"
    first = next(line for line in text.split("\n") if line.strip())
    return (
        f"no line of metrics was found (the first line is {shortened(first.strip())}); expected trainer_state.json, "
        "JSONL, CSV, or the console output of a trainer"
    )


def finished(raw: Raw) -> Reading:
    """Assign steps, and resolve restarts.

    Raises:
        ValueError: no line is left.
    """
    lines = [_marked(_without_events(line)) for line in raw.lines if not summary(line)]
    if not lines:
        raise ValueError("it holds the summary of a run and no line of its log")
    settings = dict(raw.settings)
    numbered, remarks = _with_steps(lines, settings)
    ordered, told = _without_restarts(_over_epochs(numbered))
    return Reading(lines=ordered, remarks=(*raw.remarks, *remarks, *told), settings=settings)


def _without_events(line: Line) -> Line:
    """The events of our recorder stay; in the logs of others `event` is a name like any other."""
    return line if line.get("event") in (None, "begin", "end") else {n: v for n, v in line.items() if n != "event"}


def _marked(line: Line) -> Line:
    """A line of an evaluation that says so (`"eval": true`, `"split": "val"`) gets names of evaluations."""
    says = line.get("eval") is True or any(
        isinstance(line.get(kind), str) and line[kind].lower() in _EVALUATION for kind in _KINDS
    )
    if not says:
        return line
    return {name if name in STEPS else f"eval/{name}": one for name, one in line.items() if name != "eval"}


def _with_steps(lines: list[Line], settings: dict[str, Any]) -> tuple[list[Line], list[str]]:
    steps = [_step(line, settings) for line in lines]
    if all(step is None for step in steps):
        counted, step = [], 0
        for line in lines:
            if not only_evaluation(line):
                step += 1
            counted.append({**line, "step": max(step, 1)})
        return counted, ["the lines have no step: they were counted, and a step is a line of the log"]
    found = [{**line, "step": step} for line, step in zip(lines, steps, strict=True) if step is not None]
    without = [number for number, step in enumerate(steps, 1) if step is None]
    for number in without:  # a loop may log its configuration first
        for name, inner in of_mapping(lines[number - 1]).items():
            settings.setdefault(name, inner)
    if not without:
        return found, []
    what = f"entry {without[0]}" if len(without) == 1 else f"{len(without)} of {len(lines)} entries"
    return found, [f"{what} without a step {'was' if len(without) == 1 else 'were'} left out"]


def _step(line: Line, settings: dict[str, Any]) -> int | None:
    for name in STEPS:
        step = line.get(name)
        if isinstance(step, str) and "/" in step:  # ms-swift: 12/300
            done, _, total = step.partition("/")
            if total.isdigit():
                settings.setdefault("max_steps", int(total))
            step = int(done) if done.isdigit() else None
        # from 2^53 on, a float does not tell neighbouring integers apart
        if isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step) and abs(step) < 2**53:
            return int(step) if step == int(step) else None
    return None


def _over_epochs(lines: list[Line]) -> list[Line]:
    """Lines whose step counts within its epoch get one that counts over all of them."""
    before = offset = 0
    epoch: float | None = None
    found = []
    for line in lines:
        step, now = line["step"], line.get("epoch")
        if isinstance(now, int | float) and "event" not in line:
            if epoch is not None and now == epoch + 1 and step < before:
                offset += before
            epoch, before = now, step
        found.append({**line, "step": step + offset} if offset else line)
    return found


def _without_restarts(lines: list[Line]) -> tuple[list[Line], list[str]]:
    """The lines of the last start. A step that comes again, with names that it has already, is a restart.

    One that goes back behind the first step is a new start, and everything before it is left out; any other is training
    that went on from an earlier checkpoint, and the steps after that are left out.
    """
    kept: list[Line] = []
    names: dict[int, set[str]] = {}
    left_out = starts = 0
    latest = -math.inf
    for line in lines:
        step = line["step"]
        if "event" in line:  # of our recorder: what came after the checkpoint did not happen
            if line["event"] == "begin":
                kept = [one for one in kept if "event" in one or one["step"] <= step]
                names = {at: known for at, known in names.items() if at <= step}
                latest = step
            kept.append(line)
            continue
        metrics = set() if only_evaluation(line) else line.keys() - PLACES
        if step < latest and not metrics.isdisjoint(names.get(step, ())):
            before = [one for one in kept if one["step"] < step]
            left_out += len(kept) - len(before)
            if any("event" not in one for one in before):
                before.append({"event": "begin", "step": step - 1})
            else:
                starts += 1
                before = []
            kept = before
            names = {at: known for at, known in names.items() if at < step}
            latest = step
        kept.append(line)
        names.setdefault(step, set()).update(metrics)
        latest = max(latest, step)
    if not left_out:
        return kept, []
    if starts:
        return kept, [
            f"the steps start again {counted(starts, 'time')}: left out {counted(left_out, 'line')} before the "
            "last start"
        ]
    return kept, [f"training continued from an earlier step: left out {counted(left_out, 'line')} logged again later"]
