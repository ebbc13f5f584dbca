"""A run folder that another run has used: how far that run came, and removing what it recorded."""

from __future__ import annotations

import os
from pathlib import Path

from dgpo.runs.metrics import read_metrics, step_of
from dgpo.runs.schema import COMPLETIONS, INFO, METRICS, TOKENS, token_files


def recorded_updates(folder: str | os.PathLike[str]) -> int:
    """The last update that a folder has tokens or a log line of; 0 where nothing was trained, or nothing is there.

    A log that cannot be read counts as one update, so that nobody takes it for empty.
    """
    folder = Path(folder)
    # a token file is written when its update ends, a log line every `logging_steps`
    last = max((file.update for file in token_files(folder)), default=0)
    if (folder / METRICS).exists():
        try:
            last = max([last, *map(step_of, read_metrics(folder / METRICS, leave_out=lambda *_: None))])
        except (OSError, ValueError):
            last = max(last, 1)
    return last


def remove_recording(folder: str | os.PathLike[str]) -> None:
    """Delete what a recording consists of: `run.json`, the metrics, the completions and the token files.

    Every other file stays, and so does `tokenizer/`, which the next recording replaces.

    Raises:
        OSError: a file cannot be deleted.
    """
    folder = Path(folder)
    # run.json last: killed in between, the rest is still known as a recording
    for path in [*(file.path for file in token_files(folder)), folder / COMPLETIONS, folder / METRICS, folder / INFO]:
        path.unlink(missing_ok=True)
    if (folder / TOKENS).is_dir() and not any((folder / TOKENS).iterdir()):
        (folder / TOKENS).rmdir()
