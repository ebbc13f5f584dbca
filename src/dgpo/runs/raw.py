"""What a file of any format holds, before steps are assigned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo.runs.names import SUMMARY, evaluation, trains
from dgpo.runs.values import Line


@dataclass
class Raw:
    """The lines of a log as they stand in a file.

    Attributes:
        lines: name -> value, in order.
        remarks: what was left out or had to be guessed, one sentence each.
        settings: of the run, in the names of TRL.
    """

    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def summary(line: Line) -> bool:
    """Whether a line is the summary after the last step."""
    return SUMMARY in line or f"train/{SUMMARY}" in line


def only_evaluation(line: Mapping[str, Any]) -> bool:
    """Whether a line has metrics of an evaluation and none of training."""
    return any(map(evaluation, line)) and not trains(tuple(line))
