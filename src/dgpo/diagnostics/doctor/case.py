"""The input of the rules: the log of a run, its settings, and measures of its recorded tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo.diagnostics.doctor.measures import Measures, measure
from dgpo.objectives import Objective
from dgpo.runs.info import aggregation_of, objective_of
from dgpo.runs.log import Log
from dgpo.runs.run import Run, load_any


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run as the rules see it.

    Attributes:
        log: its metrics.
        info: `run.json`; empty for a log alone.
        updates: measures of the recorded tokens, in order; empty for a log alone.
    """

    log: Log
    info: Mapping[str, Any] = field(default_factory=dict)
    updates: tuple[Measures, ...] = ()

    def setting(self, name: str) -> Any:
        """A field of the trainer's config; None if unknown."""
        return (self.info.get("config") or {}).get(name)

    @property
    def objective(self) -> Objective | None:
        """The objective that the run was trained with; None if unknown."""
        return objective_of(self.info)

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Run) -> Case:
        """Measure the recorded tokens of a run; anything but a `Run` is opened by `load_any`.

        Raises:
            ValueError, FileNotFoundError: as `load_any`.
        """
        run = source if isinstance(source, Run) else load_any(source)
        objective, how = objective_of(run.info), aggregation_of(run.info)
        weighed = objective is not None or not run.info.get("objective")
        updates = tuple(measure(recorded, objective, how, weighed=weighed) for recorded in run.recorded())
        return cls(log=run.log, info=run.info, updates=updates)
