"""What the doctor is shown: the log of a run, what is known of its settings, and figures of its recorded tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo.diagnostics.doctor.measures import Figures, figures
from dgpo.files import read_json
from dgpo.objectives import Objective
from dgpo.runs.metrics import Log
from dgpo.runs.run import Run, load, read_metrics
from dgpo.runs.run_info import aggregation_of, objective_of

STATE = "trainer_state.json"
"""What transformers' trainer writes into every checkpoint; its `log_history` is the log until then."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run as the rules see it.

    Attributes:
        log: its metrics.
        info: `run.json`; empty for a log alone.
        updates: figures of the recorded tokens, in order; empty for a log alone.
    """

    log: Log
    info: Mapping[str, Any] = field(default_factory=dict)
    updates: tuple[Figures, ...] = ()

    def setting(self, name: str) -> Any:
        """A field of the trainer's config; None where it is not known."""
        return (self.info.get("config") or {}).get(name)

    @property
    def objective(self) -> Objective | None:
        """The objective that the run was trained with; None where it is not known."""
        return objective_of(self.info)

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Run) -> Case:
        """From a run folder, a `Run`, a JSONL of metrics or a `trainer_state.json` (or the checkpoint it lies in).

        Raises:
            ValueError: it is none of these, or damaged; says which line.
            FileNotFoundError: there is no such file.
        """
        if isinstance(source, Run):
            return _of_run(source)
        path = Path(source)
        if path.is_dir():
            state = path / STATE
            return cls(log=_of_file(state)) if state.is_file() else _of_run(load(path))
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(path)!r} does not exist; expected a run folder, a metrics.jsonl or a {STATE}"
            )
        return cls(log=_of_file(path))


def _of_run(run: Run) -> Case:
    objective, how = objective_of(run.info), aggregation_of(run.info)
    weighed = objective is not None or not run.info.get("objective")
    updates = tuple(figures(recorded, objective, how, weighed=weighed) for recorded in run.recorded())
    return Case(log=Log.of(run.metrics), info=run.info, updates=updates)


def _of_file(path: Path) -> Log:
    try:
        whole = read_json(path)
    except ValueError:
        whole = None  # not one object but one per line, which the reader of lines checks
    try:
        if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
            return Log.of(whole["log_history"])
        return Log.of(read_metrics(path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{str(path)!r}: {error}") from error
