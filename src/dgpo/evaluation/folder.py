"""The folder of an evaluation, which can be interrupted at any moment and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dgpo.evaluation.suite import Slot
from dgpo.evaluation.tables import markdown
from dgpo.files import FolderLock, loads, write_json_atomic, write_lines_atomic, write_text_atomic
from dgpo.redaction import redacted
from dgpo.runs.results import CONFIGURATION, GENERATIONS, RESULTS, Evaluation, read_results, results_file

ROW = ("completion", "extracted", "kind", "reason", "score", "tokens", "truncated")
"""What every row has beside its place; see `graded_rows`."""


def as_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of JSON in ASCII: a U+2028 in a completion would end one for readers that split with str.splitlines."""
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


class RunFolder:
    """`run.json` and `generations.jsonl` of one run; a context manager that keeps other processes out.

    `run.json` is written before the first completion and says what the run is. Rows are appended to
    `generations.jsonl` and flushed to the disk as they come. A line that was cut off when the process died is removed
    when the folder is opened again.

    Args:
        path: folder, which is created.
        configuration: what the run is, as JSON.
        slots: every completion of the run, in canonical order.

    Attributes:
        rows: position in `slots` -> row, of everything that is there.

    Raises:
        ValueError: on entering: another process is at work in the folder; it holds the generations of another
            configuration (every difference is named), or a line that does not belong to the run.
        OSError: the folder cannot be created or written to.
    """

    def __init__(self, path: str | os.PathLike[str], configuration: Mapping[str, Any], slots: Sequence[Slot]) -> None:
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        self._configuration = json.loads(json.dumps(configuration, allow_nan=False))
        self._positions = {slot.key: position for position, slot in enumerate(slots)}
        self._in_file: list[int] = []
        self._lock = FolderLock(self.path, "evaluating into", name=".lock")
        self._file: BinaryIO | None = None
        self._open = ExitStack()

    def __enter__(self) -> RunFolder:
        with ExitStack() as opened:
            opened.enter_context(self._lock)
            self._check_configuration()
            self._read()
            self._file = opened.enter_context(open(self.path / GENERATIONS, "ab"))
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def append(self, found: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Keep rows, each with its position in `slots`; on the disk when this returns."""
        assert self._file is not None
        self._file.write("".join(as_lines(row for _, row in found)).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.update(found)
        self._in_file += [position for position, _ in found]

    def finish(self) -> list[dict[str, Any]]:
        """All rows in canonical order, which is also that of the file from now on."""
        assert len(self.rows) == len(self._positions)
        rows = [self.rows[position] for position in range(len(self.rows))]
        if self._in_file != sorted(self._in_file):
            write_lines_atomic(self.path / GENERATIONS, as_lines(rows))
        return rows

    def _check_configuration(self) -> None:
        file, generations = self.path / CONFIGURATION, self.path / GENERATIONS
        if generations.exists() and generations.stat().st_size > 0:
            if not file.exists():
                raise ValueError(
                    f"{str(self.path)!r} holds a {GENERATIONS} without {CONFIGURATION}; use another folder"
                )
            before = read_configuration(file)
            if changes := differences(before, self._configuration):
                raise ValueError(
                    f"{str(self.path)!r} holds the completions of another configuration; use another folder, or the "
                    f"same settings to resume. Different (there -> now): {'; '.join(changes)}"
                )
        write_json_atomic(file, self._configuration)

    def _read(self) -> None:
        file = self.path / GENERATIONS
        if not file.exists():
            return
        with open(file, "rb") as content:
            for number, line in enumerate(content, start=1):
                if line.endswith(b"\n"):
                    self._keep(line, f"line {number} of {str(file)!r}")
                else:
                    os.truncate(file, file.stat().st_size - len(line))

    def _keep(self, line: bytes, where: str) -> None:
        try:
            row = loads(line)
            position = self._positions.get((row["benchmark"], row["id"], row["sample"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is not a row of an evaluation; remove it to have it generated again") from error
        if missing := [key for key in ROW if key not in row] or not isinstance(row["completion"], str):
            what = f"no {missing[0]}" if isinstance(missing, list) else "a completion that is not a string"
            raise ValueError(f"{where} has {what}; remove it to have it generated again")
        if position is None or position in self.rows:
            how = "occurs twice" if position is not None else "does not belong to this run"
            raise ValueError(f"{where} ({row['benchmark']}, {row['id']}, sample {row['sample']}) {how}; remove it")
        self.rows[position] = row
        self._in_file.append(position)


def read_configuration(file: Path) -> dict[str, Any]:
    """A `run.json`. Raises ValueError for one that is damaged."""
    try:
        return dict(loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}); use another folder") from error


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The values that differ between two JSON documents, as "sampling.seed: 0 -> 1"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        found = [differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{name}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = redacted(json.dumps(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def write(evaluation: Evaluation, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write all files of an evaluation into `folder`, which is created; each file whole or not at all.

    `generations.jsonl` holds one completion per line and is written before `results.json`: results without their
    generations do not occur. What was there is replaced.

    Returns:
        the paths (results, generations).

    Raises:
        ValueError: something holds NaN or an infinity.
        OSError: the folder cannot be created or written to.
    """
    json.dumps(evaluation.document(), allow_nan=False)  # fail before any file is replaced
    path = write_lines_atomic(Path(folder) / GENERATIONS, as_lines(evaluation.generations))
    write_json_atomic(Path(folder) / CONFIGURATION, run_of(evaluation.document()))
    return write_results(evaluation, folder), path


def write_results(evaluation: Evaluation, folder: str | os.PathLike[str]) -> Path:
    """Write `results.md` and, last, `results.json`."""
    write_text_atomic(Path(folder) / "results.md", markdown(evaluation))
    return write_json_atomic(Path(folder) / RESULTS, evaluation.document())


def run_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The `run.json` that belongs to a `results.json`."""
    found = {name: {"grader": one["grader"], "data": one["data"]} for name, one in document["benchmarks"].items()}
    return {**{name: document[name] for name in ("model", "backend", "sampling", "prompt")}, "benchmarks": found}


def recorded_timing(folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The timing in the `results.json` of a folder; empty if the process died before it was written."""
    if folder is None or not results_file(folder).exists():
        return {}
    return dict(read_results(folder).get("timing") or {})
