"""TensorBoard's event files, read by its own package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dgpo.files import loads
from dgpo.installation import require
from dgpo.runs.raw import Raw
from dgpo.runs.settings import of_mapping
from dgpo.runs.values import Line, flat


def is_event_file(file: Path) -> bool:
    """Whether a name is that of an event file."""
    return "tfevents" in file.name


def read_events(files: Iterable[Path]) -> Raw:
    """The scalars of event files, one line per step, and the settings that transformers writes into them.

    Raises:
        ValueError: they hold no scalars.
        ModuleNotFoundError: tensorboard is not installed.
    """
    require("TensorBoard's event files are read with", "tensorboard", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    rows: dict[int, Line] = {}
    raw = Raw()
    files = list(files)
    for file in files:
        # 0: all of them, and not a sample
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags: dict[str, Any] = events.Tags()
        for tag in tags["scalars"]:
            for event in events.Scalars(tag):
                rows.setdefault(event.step, {})[tag] = event.value
        for tag in tags["tensors"]:
            for event in events.Tensors(tag):
                array = tensor_util.make_ndarray(event.tensor_proto)
                if array.dtype.kind in "OSU":
                    raw.settings |= _settings(array.item() if array.size == 1 else "")
                elif array.size == 1:
                    rows.setdefault(event.step, {})[tag] = float(array.item())
    if not rows:
        raise ValueError(f"{', '.join(str(file) for file in files)}: no scalars in the event files")
    raw.lines = [flat({"step": step, **row}) for step, row in sorted(rows.items())]
    return raw


def _settings(text: Any) -> dict[str, Any]:
    """Transformers' callback writes the trainer's arguments as a text in JSON."""
    try:
        found = loads(text)
    except (ValueError, TypeError):
        return {}
    return of_mapping(found) if isinstance(found, dict) else {}
