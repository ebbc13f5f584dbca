"""The folder of an evaluation, which can be interrupted and resumed at any time."""

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
"""Keys of every row besides its identity; see `graded_rows`."""


def as_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """JSON lines in ASCII: readers that use str.splitlines would split a line at a U+2028 in a completion."""
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


class RunFolder:
    """`run.json` and `generations.jsonl` of one run; a context manager that keeps other processes out.

    `run.json`, the configuration, is written before the first completion. Rows are appended to `generations.jsonl` and
    flushed to the disk immediately. An incomplete last line, left by a killed process, is removed when the folder is
    opened again.

    Args:
        path: the folder; created if missing.
        configuration: the configuration of the run, as JSON.
        slots: all completions of the run, in canonical order.

    Attributes:
        rows: position in `slots` -> row, for the completions so far.

    Raises:
        ValueError: on entering, if another process uses the folder, it contains completions of another configuration
            (the error lists the differences), or a line does not belong to the run.
        OSError: if the folder cannot be created or written to.
    """

    def __init__(self, path: str | os.PathLike[str], configuration: Mapping[str, Any], slots: Sequence[Slot]) -> None:
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        # through JSON, so that a tuple equals the list that is read back
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
            # an error before this line closes the file and releases the lock
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def append(self, found: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Write rows with their positions in `slots`; they are on the disk when this returns."""
        assert self._file is not None
        self._file.write("".join(as_lines(row for _, row in found)).encode("ascii"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.update(found)
        self._in_file += [position for position, _ in found]

    def finish(self) -> list[dict[str, Any]]:
        """All rows in canonical order; sorts the file in the same way."""
        assert len(self.rows) == len(self._positions)
        rows = [self.rows[position] for position in range(len(self.rows))]
        # backends finish out of order; a crash before this rewrite loses nothing
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
        missing = [key for key in ROW if key not in row]
        if missing or not isinstance(row["completion"], str):
            what = f"no {missing[0]}" if missing else "a completion that is not a string"
            raise ValueError(f"{where} has {what}; remove it to have it generated again")
        if position is None or position in self.rows:
            how = "occurs twice" if position is not None else "does not belong to this run"
            raise ValueError(f"{where} ({row['benchmark']}, {row['id']}, sample {row['sample']}) {how}; remove it")
        self.rows[position] = row
        self._in_file.append(position)


def read_configuration(file: Path) -> dict[str, Any]:
    """Read a `run.json`. Raises ValueError if it is damaged."""
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
    """Write all files of an evaluation into `folder`, which is created if missing; each file atomically.

    `generations.jsonl` holds one completion per line and is written before `results.json`, so that results never
    exist without their completions. Existing files are replaced.

    Returns:
        The paths (results, generations).

    Raises:
        ValueError: if a value is NaN or infinite.
        OSError: if the folder cannot be created or written to.
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
    """The timing in the `results.json` of a folder; empty if there is none."""
    if folder is None or not results_file(folder).exists():
        return {}
    return dict(read_results(folder).get("timing") or {})
