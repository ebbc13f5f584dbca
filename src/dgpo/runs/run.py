"""A run, read from its folder or from its log alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dgpo.runs.info import read_info
from dgpo.runs.log import Log
from dgpo.runs.metrics import read_log, read_metrics
from dgpo.runs.schema import INFO, METRICS, TOKENS, TRAINER_STATE, named, token_files
from dgpo.runs.tokens import Footer, Recorded, footer, read


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run.

    Attributes:
        folder: where it was recorded to; for a log alone, the file.
        info: `run.json`; empty if there is none. Entries that `info.KINDS` does not allow are left out. Of a log alone,
            `config` has the settings that the log tells (its header, the trainer's state), in the names of TRL.
        metrics: the log lines, in order. If a step occurs twice, because the run was resumed from an earlier
            checkpoint, only the last. Events have a key `event`.
        damaged: names of the files, or parts of files, that could not be read so far.
        remarks: what a reader of the metrics should know of how they were read, one sentence each: where the file
            breaks off, lines that were left out, steps that had to be counted.
        mapped: quantity -> the name that the user says it has in the log.
    """

    folder: Path
    info: dict[str, Any]
    metrics: list[dict[str, Any]]
    damaged: list[str] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def log(self) -> Log:
        """The metrics as series over steps."""
        return Log.of(self.metrics, self.mapped)

    @cached_property
    def files(self) -> dict[int, list[Path]]:
        """Update -> its files, one per recording rank, in order; listed once, at the first access."""
        found: dict[int, list[Path]] = {}
        for update, _, path in token_files(self.folder):
            found.setdefault(update, []).append(path)
        return found

    @property
    def updates(self) -> list[int]:
        """The recorded updates, in order."""
        return list(self.files)

    def footers(self) -> dict[int, list[Footer]]:
        """Update -> the footers of its files; files that cannot be read are left out."""
        found: dict[int, list[Footer]] = {update: [] for update in self.files}
        for update, paths in self.files.items():
            for path in paths:
                try:
                    found[update].append(footer(path))
                except ValueError:  # `recorded` warns about the file
                    continue
        return found

    def tokens(self, update: int, rank: int = 0) -> Recorded:
        """What one rank recorded of an update.

        Raises:
            KeyError: if it recorded no tokens of it.
            ValueError: if the file is damaged.
        """
        for path in self.files.get(update, []):
            name = named(path)
            if name is not None and name.rank == rank:
                return read(path)
        raise KeyError(f"no tokens of update {update} of rank {rank} in {self.folder}; recorded: {self.updates}")

    def recorded(self, updates: Iterable[int] | None = None) -> Iterator[Recorded]:
        """The recorded updates in order, rank by rank.

        A file that cannot be read is skipped with a warning that names it, and added to `damaged`.
        """
        files = self.files
        for update in files if updates is None else updates:
            for path in files[update]:
                try:
                    found = read(path)
                except ValueError as error:
                    _leave_out(self.damaged, path.name, str(error))
                    continue
                yield found


def _leave_out(damaged: list[str], name: str, why: str) -> None:
    """Record that a file, or a part of one, is not read; warn the first time."""
    if name not in damaged:
        damaged.append(name)
        warnings.warn(f"left out: {why}", stacklevel=3)


def load(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Damaged parts are left out with a warning and listed in `Run.damaged`: `run.json` or entries of it, lines of
    `metrics.jsonl`, and token files as they are read.

    Raises:
        ValueError: if it is not a folder, or nothing was recorded there.
    """
    folder = Path(folder)
    info, metrics, state = folder / INFO, folder / METRICS, folder / TRAINER_STATE
    recorded = info.is_file() or metrics.is_file() or (folder / TOKENS).is_dir()
    is_log = folder.is_file() and folder.suffix in (".json", ".jsonl")
    if is_log or (state.is_file() and not recorded):
        raise ValueError(
            f"{str(folder)!r} is a log or a checkpoint, which `dgpo doctor` reads; expected the folder that a run was "
            "recorded to (record: FOLDER)"
        )
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; expected one that a run was recorded to")
    if not recorded:
        raise ValueError(
            f"{str(folder)!r} holds none of {INFO}, {METRICS}, {TOKENS}/: nothing was recorded there "
            "(DGPOConfig(record=FOLDER), or dgpo.diagnostics.record)"
            + (f"; did you mean {str(folder / 'record')!r}?" if (folder / "record").is_dir() else "")
        )
    damaged: list[str] = []
    about = read_info(info, lambda name, why: _leave_out(damaged, name, why)) if info.exists() else {}
    rows: list[dict[str, Any]] = []
    if metrics.exists():
        try:
            rows = read_metrics(metrics, leave_out=lambda number, why: _leave_out(damaged, f"{METRICS}:{number}", why))
        except (ValueError, OSError) as error:
            _leave_out(damaged, METRICS, str(error))
    return Run(folder=folder, info=about, metrics=rows, damaged=damaged)


def load_any(source: str | os.PathLike[str]) -> Run:
    """A run from its folder, or from its log alone: a JSONL of metrics, or a `trainer_state.json` or its checkpoint.

    Raises:
        ValueError: if it is none of these, or the log is damaged; names the line.
        FileNotFoundError: if it does not exist.
    """
    path = Path(source)
    if path.is_dir() and not (path / TRAINER_STATE).is_file():
        return load(path)
    log = path / TRAINER_STATE if path.is_dir() else path
    if not log.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist; expected a run folder, a {METRICS} or a {TRAINER_STATE}"
        )
    return Run(folder=log, info={}, metrics=read_log(log))
