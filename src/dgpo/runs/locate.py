"""Finds the log in the output folder of a trainer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo.counts import counted
from dgpo.files import read_json
from dgpo.runs.reading import Reading, read_log
from dgpo.runs.schema import INFO, LOG, METRICS, TOKENS, TRAINER_STATE
from dgpo.runs.settings import merged, of_mapping, of_text

RECORD = "record"
"""Where a trainer's output folder has its recorded run, if it was not put elsewhere."""

_CHECKPOINT = re.compile(r"(?:checkpoint|global_step|step)[-_](\d+)")
_NAMED = ("logging.jsonl", METRICS, LOG)
"""Logs with names of their own: ms-swift's, of our recordings and prime-rl's, and of `dgpo train`."""

_SUFFIXES = (".jsonl", ".log", ".csv", ".tsv", ".out", ".txt", ".json")
_NO_LOGS = re.compile(
    r"(?:config|completions|samples|generations|tokenizer|generation|special_tokens|vocab|added_tokens|adapter|preprocessor|all_results|README|args|"
    r"requirements|training_args|model\.safetensors|merges|chat_template|eval_results|train_results).*"
)


@dataclass(frozen=True)
class Found:
    """The files that may be the log of a folder, best first; `events` if they are TensorBoard's, read together."""

    files: Sequence[Path]
    events: bool = False
    remarks: tuple[str, ...] = ()


def is_run_folder(folder: Path) -> bool:
    """Whether a run was recorded to a folder."""
    return (folder / INFO).is_file() or (folder / METRICS).is_file() or (folder / TOKENS).is_dir()


def find_log(path: Path) -> Found:
    """The log at a path: the file itself; in a folder the `trainer_state.json` with the most steps, or else ms-swift's
    `logging.jsonl`, TensorBoard's event files, or the only file that may be a log.

    Raises:
        ValueError: there is none, or several.
    """
    if not path.is_dir():
        return Found([path])
    states = [*_states(path), *(state for inner in _versions(path) for state in _states(inner))]
    if states:
        return Found(states)
    for name in _NAMED:
        if named := [file for folder in (path, *_versions(path)) if (file := folder / name).is_file()]:
            return Found(named)
    if events := sorted(file for file in path.rglob("*tfevents*") if file.is_file()):
        folders = sorted({file.parent for file in events}, key=lambda folder: folder.stat().st_mtime)
        newest = [file for file in events if file.parent == folders[-1]]
        others = f"{counted(len(folders), 'folder')} hold event files: {folders[-1]} was written last and is read"
        return Found(newest, events=True, remarks=(others,) if len(folders) > 1 else ())
    logs = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and not _NO_LOGS.match(file.name))
    if not logs:
        logs = _of_wandb(path)
    if len(logs) == 1:
        return Found(logs)
    if logs:
        names = ", ".join(file.name for file in logs[:5])
        raise ValueError(
            f"{str(path)!r} holds {counted(len(logs), 'file')} that may be logs ({names}); give one of them"
        )
    offline = next(path.rglob("*.wandb"), None) is not None
    raise ValueError(
        f"{str(path)!r} holds no log: none of {RECORD}/, {INFO}, {METRICS}, {TRAINER_STATE}, checkpoint-N/, "
        "logging.jsonl, event files of TensorBoard, or a .jsonl, .csv or .log file"
        + ("; W&B's .wandb files are not read: run `wandb sync`, and export the run as CSV" if offline else "")
        + "; nothing was recorded there (DGPOConfig(record=FOLDER), or dgpo.diagnostics.record)"
    )


def _of_wandb(path: Path) -> list[Path]:
    """The console output that W&B keeps of a run: of the folder of a run, or of the latest one in `wandb/`."""
    folders = [path, *(outer / "latest-run" for outer in (path, path / "wandb"))]
    runs = [*path.glob("*run-*"), *path.glob("wandb/*run-*")]
    folders += sorted((folder for folder in runs if folder.is_dir()), key=lambda folder: folder.name, reverse=True)
    outputs = (folder / "files" / "output.log" for folder in folders)
    return [file for file in outputs if file.is_file()][:1]


def settings_beside(file: Path) -> dict[str, Any]:
    """Settings in the files that ms-swift (`args.json`) and W&B (`wandb-metadata.json`) put beside a log."""
    found: list[dict[str, Any]] = []
    for name in ("args.json", "wandb-metadata.json"):
        try:
            inner = read_json(file.parent / name)
        except (OSError, ValueError):  # not there, or of another program
            continue
        if isinstance(inner, dict):
            arguments = inner.get("args") if name == "wandb-metadata.json" else None
            words = " ".join(map(str, arguments)) if isinstance(arguments, list) else ""
            found.append(of_text(words) if words else of_mapping(inner))
    return merged(found)


def _versions(path: Path) -> list[Path]:
    """ms-swift's folders of a run in its output folder: `v0-20250101-120000`, the newest first."""
    inner = (folder for folder in path.iterdir() if folder.is_dir() and re.match(r"v\d+-\d+", folder.name))
    return sorted(inner, key=lambda folder: int(folder.name[1:].split("-")[0]), reverse=True)


def _states(folder: Path) -> list[Path]:
    """The trainer states of a folder and its checkpoints, most steps first; the folder's own is written at the end."""
    found: list[tuple[float, Path]] = []
    own = folder / TRAINER_STATE
    if own.is_file():
        found.append((float("inf"), own))
    for inner in folder.iterdir():
        number = _CHECKPOINT.fullmatch(inner.name)
        if number and (inner / TRAINER_STATE).is_file():
            found.append((int(number[1]), inner / TRAINER_STATE))
    return [path for _, path in sorted(found, key=lambda one: one[0], reverse=True)]


def read_first(found: Found) -> tuple[Reading, Found]:
    """The first of the files that can be read, and which it is.

    Raises:
        ValueError, OSError, ModuleNotFoundError: none can; the error of the first.
    """
    left_out: list[str] = []
    for number, file in enumerate(found.files):
        try:
            read = read_log(file)
        except (ValueError, OSError) as error:
            if number == len(found.files) - 1:
                raise
            left_out.append(f"left out: {error}")
            continue
        return read, Found([file], remarks=(*found.remarks, *left_out))
    raise AssertionError("no file to read")
