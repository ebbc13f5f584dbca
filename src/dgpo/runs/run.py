"""A run, read from its folder or from its log alone."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dgpo.runs.completions import Completion, read_completions
from dgpo.runs.events import read_events
from dgpo.runs.info import checked, read_info
from dgpo.runs.locate import RECORD, Found, find_log, is_run_folder, read_first, settings_beside
from dgpo.runs.log import Log
from dgpo.runs.metrics import read_metrics
from dgpo.runs.names import QUANTITIES
from dgpo.runs.reading import finished
from dgpo.runs.schema import COMPLETIONS, INFO, METRICS, TOKENS, TRAINER_STATE, named, token_files
from dgpo.runs.settings import merged
from dgpo.runs.tokens import Footer, Recorded, footer, read
from dgpo.warning import warn


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

    @cached_property
    def completions(self) -> list[Completion]:
        """A sample of what the model wrote, in order; empty if none was recorded. Read at the first access."""
        path = self.folder / COMPLETIONS
        if not path.is_file():
            return []
        try:
            return read_completions(
                path, leave_out=lambda number, why: _leave_out(self.damaged, f"{COMPLETIONS}:{number}", why)
            )
        except (ValueError, OSError) as error:
            _leave_out(self.damaged, COMPLETIONS, str(error))
            return []

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
        warn(f"left out: {why}")


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


def load_any(source: str | os.PathLike[str], mapped: Mapping[str, str] | None = None) -> Run:
    """A run from its folder, or from the log of any trainer (`read_log` has the formats).

    A folder may be a run folder, a checkpoint, or the output folder of a trainer: `record/` in it is read first, then
    the newest `checkpoint-N/trainer_state.json`, then any other log (`find_log`).

    Args:
        source: file or folder.
        mapped: quantity -> the name that it has in this log, for names that are not known.

    Raises:
        ValueError: if it is none of these, or holds no log that can be read; or `mapped` names a quantity that does not
            exist, or a name that the log does not have.
        FileNotFoundError: if it does not exist.
        ModuleNotFoundError: if it is a log of TensorBoard, and tensorboard is not installed.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist; expected a run folder or a log")
    record = next((folder for folder in (path, path / RECORD) if is_run_folder(folder)), None)
    if record is not None:
        run = replace(load(record), mapped=dict(mapped or {}))
    else:
        found = find_log(path)
        if found.events:
            read = finished(read_events(found.files))
        else:
            read, found = read_first(found)
        settings = merged([read.settings, settings_beside(found.files[0])])
        config, wrong = checked({"config": settings} if settings else {})
        run = Run(
            folder=found.files[0],
            info=config,
            metrics=read.lines,
            remarks=(*_named(path, found), *found.remarks, *read.remarks, *wrong),
            mapped=dict(mapped or {}),
        )
    _check_mapping(run)
    return run


def _named(path: Path, found: Found) -> tuple[str, ...]:
    """Which file of a folder was read."""
    return (f"read from {found.files[0].relative_to(path)}",) if path.is_dir() else ()


def _check_mapping(run: Run) -> None:
    for quantity, name in run.mapped.items():
        if quantity not in QUANTITIES:
            raise ValueError(f"{quantity!r} is not a quantity of a log; expected one of {', '.join(QUANTITIES)}")
        if name not in run.log.keys:
            near = difflib.get_close_matches(name, run.log.keys, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{str(run.folder)!r} has no {name!r}, which {quantity} is mapped to{hint}")
