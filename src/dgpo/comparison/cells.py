"""The folder of one run of a study: its full configuration, its state, and what the run wrote.

| file | content |
|---|---|
| `cell.json` | what run it is, with every option, and how far it got |
| `config.yaml` | what `dgpo train --config` reads (JSON is YAML) |
| `log.txt` | what the process printed, over all its starts |
| `train/` | `output_dir`: checkpoints until the run is finished, `eval/STEP` and the model |
| `record/` | `run.json` and `metrics.jsonl` |
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dgpo.comparison.study import Cell
from dgpo.evaluation.folder import differences
from dgpo.files import FolderLock, parse_json, printable, read_json, write_json_atomic
from dgpo.redaction import without_secrets
from dgpo.registry import as_value
from dgpo.runs.log import Log
from dgpo.runs.metrics import read_metrics, step_of
from dgpo.runs.schema import METRICS

SCHEMA = "dgpo.cell/1"
State = Literal["waiting", "running", "stopped", "failed", "finished"]

LAST_LINES = 15
"""Lines of the log that are shown of a run that failed."""

_TAIL = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run got.

    Attributes:
        state: "waiting" has never begun; "running" without a process was killed; "stopped" can be continued, as can a
            run that was killed; "failed" ended with an error.
        code: exit code of the last process; negative for a signal. None if it has not ended.
        seconds: wall-clock time of all its processes that ended.
        starts: number of processes.
    """

    state: State = "waiting"
    code: int | None = None
    seconds: float = 0.0
    starts: int = 0


class CellFolder:
    """The folder of a run.

    Args:
        root: of the study.
        cell: the run.
    """

    def __init__(self, root: Path, cell: Cell) -> None:
        self.cell = cell
        self.path = root / cell.name
        self.train, self.record = self.path / "train", self.path / "record"
        self.log_file, self.config = self.path / "log.txt", self.path / "config.yaml"
        self._file = self.path / "cell.json"

    def lock(self) -> FolderLock:
        """A lock on the folder, to be entered. A process that inherits its file holds it as well."""
        return FolderLock(self.path, "comparing in")

    def progress(self) -> Progress:
        """As recorded. Raises ValueError if the file is damaged."""
        found = self._recorded()
        return Progress(**found["progress"]) if found else Progress()

    def save(self, progress: Progress) -> None:
        """Record how far the run got."""
        cell = {name: value for name, value in asdict(self.cell).items() if name != "options"}
        options = without_secrets(dict(self.cell.options))
        write_json_atomic(self._file, {"schema": SCHEMA, **cell, "options": options, "progress": asdict(progress)})

    def check(self) -> None:
        """Raise ValueError if the folder belongs to a run with other options; the error lists them."""
        found = self._recorded()
        if found is None:
            return
        now = {"setting": dict(self.cell.setting), "options": without_secrets(dict(self.cell.options))}
        before = {name: found.get(name) for name in now}
        if changed := differences(_typed(before), _typed(now)):
            raise ValueError(
                f"{str(self.path)!r} holds a run with other options, and the two cannot be compared. Different (there "
                f"-> now): {'; '.join(line.removeprefix('options.') for line in changed)}. Restore these options, or "
                "give another --out"
            )

    def _recorded(self) -> dict[str, Any] | None:
        if not self._file.exists():
            return None
        found = read_json(self._file)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"{str(self._file)!r} is not a file of `dgpo compare`; give another --out")
        return found

    def write_config(self) -> None:
        """Write what `dgpo train --config` reads."""
        folders = {"output_dir": str(self.train), "record": str(self.record)}
        write_json_atomic(self.config, {**self.cell.options, **folders})

    def clear(self) -> None:
        """Delete what an earlier process of this run wrote, to begin again; its log stays."""
        for folder in (self.train, self.record):
            shutil.rmtree(folder, ignore_errors=True)

    def step(self) -> int:
        """The last update that was logged; 0 if none was. Reads the end of the log only."""
        file = self.record / METRICS
        try:
            with open(file, "rb") as content:
                content.seek(max(0, file.stat().st_size - _TAIL))
                lines = content.read().splitlines()
        except FileNotFoundError:
            return 0
        for line in reversed(lines):
            try:
                return step_of(_row(line))
            except ValueError:  # the first or the last line of the piece may be incomplete
                continue
        return 0

    def log(self) -> Log:
        """Every metric that training logged: `log["entropy"]`, `log["grad_norm"]`; empty if there is none.

        Raises:
            ValueError: the file is damaged.
        """
        file = self.record / METRICS
        return Log.of(read_metrics(file)) if file.exists() else Log()

    def last_words(self) -> list[str]:
        """The last lines of what the process printed."""
        try:
            with open(self.log_file, "rb") as content:
                content.seek(max(0, self.log_file.stat().st_size - _TAIL))
                text = content.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        # a progress bar overwrites its line: what stands there at last counts
        lines = [printable(line.rpartition("\r")[2]).rstrip() for line in text.split("\n")]
        return [line for line in lines if line][-LAST_LINES:]


def _row(line: bytes) -> dict[str, Any]:
    row = parse_json(line.decode("utf-8", "replace"))
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return row


def _typed(value: Any) -> Any:
    """Texts as the numbers that they are, so that 1e-4 and 0.0001 are the same option."""
    if isinstance(value, dict):
        return {name: _typed(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_typed(inner) for inner in value]
    return as_value(value) if isinstance(value, str) else value
