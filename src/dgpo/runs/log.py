"""The log of a run: common names for the metrics of several trainers, and their values over steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dgpo.runs.metrics import with_steps
from dgpo.runs.names import PLACES, QUANTITIES, find, offers, reward_functions
from dgpo.runs.raw import only_evaluation

KEYS: dict[str, tuple[str, ...]] = {name: quantity.patterns for name, quantity in QUANTITIES.items()}
"""Quantity -> the names under which trainers log it. The first one in the log is used; `*` matches any text."""

MUST_BE_FINITE = ("loss", "grad_norm", "entropy", "kl_old", "mean_log_ratio", "kl_sampler", "weight_max")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One quantity over a run.

    Attributes:
        key: its name in the log; empty if it was not logged.
        steps: optimiser steps, ascending.
        values: one finite number per step.
        broken: steps at which it was logged as NaN, infinite or (verl) null.
        empty: steps at which it was logged as null, as TRL does for a mean over nothing.
        unreadable: steps at which the value is not a number.
    """

    key: str = ""
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    broken: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    unreadable: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def part(self, first: int, last: int | None = None) -> Series:
        """The points with index first .. last."""
        return Series(key=self.key, steps=self.steps[first:last], values=self.values[first:last])

    @property
    def at(self) -> dict[int, float]:
        """Step -> value."""
        return dict(zip(self.steps, self.values, strict=True))

    @property
    def head(self) -> Series:
        """The start of the run: the first tenth, at least three points."""
        return self.part(0, max(3, len(self) // 10))

    @property
    def tail(self) -> Series:
        """The current state of the run: the last third, at least three points."""
        return self.part(-max(3, len(self) // 3))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def since(self, found: Callable[[float], bool]) -> int | None:
        """The first step whose value satisfies `found`."""
        return next((step for step, value in self.at.items() if found(value)), None)

    def share(self, found: Callable[[float], bool]) -> float:
        """Share of the points that satisfy `found`; 0 without points."""
        return sum(map(found, self.values)) / len(self) if len(self) else 0.0

    def __str__(self) -> str:
        """As evidence: `entropy 0.58 at steps 1-30`; the median if there are several points."""
        if not len(self):
            return f"{self.key or 'nothing'}: no number"
        where = f"at step {self.steps[0]}" if len(self) == 1 else f"at steps {self.steps[0]}-{self.steps[-1]} (median)"
        return f"{self.key} {self.median:.3g} {where}"


@dataclass(frozen=True, kw_only=True)
class Log:
    """The log lines of a run, one per step, and its events.

    Attributes:
        rows: (step, key -> value), by step. A null is None; where the logger writes null for NaN (verl), it is NaN.
        resumed: steps at which training was resumed from a checkpoint.
        repeated: steps that were logged more than once, with the same names; the last value counts.
        mapped: quantity -> the name that the user says it has (`--map`).
    """

    rows: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    resumed: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], mapped: Mapping[str, str] | None = None) -> Log:
        """Build from lines with a `step`, and events; merges lines of the same step (prime-rl writes several).

        Raises:
            ValueError: if a line has no step; names its number.
        """
        rows: dict[int, dict[str, Any]] = {}
        resumed, repeated = [], []
        for step, line in with_steps(lines):
            if "event" in line:
                if line["event"] == "begin" and step > 0:
                    resumed.append(step)
                continue
            data = line.get("data")
            # verl writes null for NaN (orjson does); TRL writes null for a mean over nothing
            data = {k: math.nan if v is None else v for k, v in data.items()} if isinstance(data, Mapping) else line
            row = rows.setdefault(step, {})
            if any(key in row and key not in PLACES for key in data) and not only_evaluation(data):
                repeated.append(step)
            row.update({key: value for key, value in data.items() if value is not None or key not in row})
        return cls(
            rows=tuple(sorted(rows.items())),
            resumed=tuple(resumed),
            repeated=tuple(dict.fromkeys(repeated)),
            mapped=dict(mapped or {}),
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All names in the log, in order of appearance."""
        return tuple(dict.fromkeys(key for _, row in self.rows for key in row))

    @cached_property
    def names(self) -> dict[str, str]:
        """Quantity of `KEYS` -> the name under which this log has it; only those that it has."""
        found = {quantity: self.mapped.get(quantity) or find(quantity, self.keys) for quantity in KEYS}
        return {quantity: key for quantity, key in found.items() if key is not None}

    def __getitem__(self, quantity: str) -> Series:
        """A quantity of `KEYS`; empty where the log has none of its names."""
        KEYS[quantity]
        key = self.names.get(quantity)
        return Series() if key is None else self.series(key)

    @cached_property
    def reward_functions(self) -> dict[str, Series]:
        """Name of each reward function -> its mean over steps; empty if the log does not tell them apart."""
        return {name: self.series(key) for name, key in reward_functions(self.keys).items()}

    @cached_property
    def offers(self) -> dict[str, tuple[str, ...]]:
        """Quantity that the log does not have under a known name -> its names that look like it (for `--map`)."""
        known = {*self.names.values(), *PLACES}
        unknown = [key for key in self.keys if key not in known and "rewards/" not in key and len(self.series(key))]
        found = {quantity: offers(quantity, unknown) for quantity in KEYS if quantity not in self.names}
        return {quantity: keys for quantity, keys in found.items() if keys}

    def series(self, key: str) -> Series:
        """The values logged under one name."""
        if key not in self._series:
            self._series[key] = self._read(key)
        return self._series[key]

    @cached_property
    def _series(self) -> dict[str, Series]:
        return {}

    def _read(self, key: str) -> Series:
        steps: list[int] = []
        values: list[float] = []
        broken: list[int] = []
        empty: list[int] = []
        unreadable: list[int] = []
        for step, row in self.rows:
            if key not in row:
                continue
            value = row[key]
            if value is None:
                empty.append(step)
            elif not isinstance(value, int | float):
                unreadable.append(step)
            elif math.isfinite(value):
                steps.append(step)
                values.append(float(value))
            else:
                broken.append(step)
        return Series(
            key=key,
            steps=tuple(steps),
            values=tuple(values),
            broken=tuple(broken),
            empty=tuple(empty),
            unreadable=tuple(unreadable),
        )


def aligned(first: Series, second: Series) -> list[tuple[int, float, float]]:
    """(step, value, latest value of `second` up to that step): some metrics are logged once per generation."""
    pairs, at, latest = [], 0, None
    for step, value in first.at.items():
        while at < len(second) and second.steps[at] <= step:
            latest, at = second.values[at], at + 1
        if latest is not None:
            pairs.append((step, value, latest))
    return pairs


def sample(steps: Sequence[int]) -> str:
    """Steps as text, at most four of them."""
    shown = ", ".join(map(str, steps[:4]))
    return f"{shown}, ... ({len(steps)} in all)" if len(steps) > 4 else shown
