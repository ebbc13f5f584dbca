"""The input of the rules: the log of a run, its settings, and measures of its recorded tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dgpo.diagnostics.doctor.measures import Measures, measure
from dgpo.diagnostics.doctor.progress import Progress, progress
from dgpo.objectives import Objective
from dgpo.runs.info import aggregation_of, objective_of
from dgpo.runs.log import Log
from dgpo.runs.run import Run, load_any

SOME = 10
"""Numbers with a fraction that tell how many decimals a log has."""


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

    def number(self, name: str) -> float | None:
        """A numeric field of the trainer's config; None if unknown."""
        found = self.setting(name)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    @cached_property
    def progress(self) -> Progress:
        """How the reward has moved."""
        return progress(self.log)

    @cached_property
    def resolution(self) -> float:
        """What the numbers of the log are multiples of, if it was printed with two to four decimals; otherwise 0."""
        fractions = [value for name in self.log.names for value in self.log[name].values[:200] if value != int(value)]
        if len(fractions) < SOME:
            return 0.0
        return next((10.0**-d for d in (2, 3, 4) if all(round(value, d) == value for value in fractions)), 0.0)

    @property
    def objective(self) -> Objective | None:
        """The objective that the run was trained with; None if unknown."""
        return objective_of(self.info)

    @property
    def anchor(self) -> str | None:
        """The policy that the ratio was taken against, "old" or "rollout"; None if unknown."""
        return self.setting("anchor")  # type: ignore[no-any-return]

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
