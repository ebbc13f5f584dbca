"""The line that `dgpo train` prints about an update: written here for a terminal, and read back from its output."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgpo.runs.values import Line


@dataclass(frozen=True)
class Column:
    """A number of the line: its word, its name in the log, its format, the width that it usually takes, and the format
    of a number below 100 where that is another one."""

    word: str
    name: str
    form: str
    width: int = 0
    below_100: str | None = None


KL_REFERENCE, KL_OLD = Column("KL(ref)", "kl", ".1e", 7), Column("KL", "objective/kl/old", ".1e", 7)
COLUMNS = (
    Column("reward", "reward", ".3f", 5),
    Column("entropy", "entropy", ".3f", 5),
    KL_OLD,
    Column("len", "completions/mean_length", ".0f", 3, ".1f"),
    Column("grad", "grad_norm", ".3g", 5),
)
"""Mean reward; entropy and KL(π_old ‖ π) per token, in nats; mean length in tokens; gradient norm before clipping. With
a KL term in the loss, the KL to the reference model takes the place of that to π_old."""

SECONDS = Column("s", "step_time", ".3g", 4)
_SHOWN = {column.word: column.name for column in (*COLUMNS, KL_REFERENCE)}

_NUMBER = r"(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?inf|-)"
_CELL = re.compile(rf"(\S+) +({_NUMBER})(?: ±{_NUMBER})?")
_LINE = re.compile(rf"\s*(\d+)/(\d+)((?:  \S+ +{_NUMBER}(?: ±{_NUMBER})?)+)(?:  +({_NUMBER}) s)?\s*")


def progress_line(step: int, total: int, logs: Mapping[str, Any], seconds: float | None) -> str | None:
    """The line of an update, about 80 characters; None where `logs` has none of its numbers.

    `12/200  reward 0.312  entropy 0.841  KL 1.2e-03  len 143  grad 0.213  3.2 s`. A number that this
    update did not log, or that is NaN, is a dash; the summary at the end of a run leaves out what it does not have.

    Args:
        step: updates so far.
        total: of the whole run.
        logs: of the trainer.
        seconds: per update, since the line before; None where there was none.
    """
    columns = [KL_REFERENCE if column is KL_OLD and KL_REFERENCE.name in logs else column for column in COLUMNS]
    if not any(column.name in logs for column in columns):
        return None
    # of transformers' summary; a run shorter than `logging_steps` has no other line
    ended = "train_runtime" in logs
    shown = [column for column in columns if not ended or column.name in logs]
    cells = [f"{column.word} {_number(logs.get(column.name), column)}" for column in shown]
    if seconds is not None:
        cells.append(f"{_number(seconds, SECONDS)} s")
    return "  ".join([_count(step, total), *cells])


def evaluation_line(step: int, total: int, logs: Mapping[str, Any]) -> str | None:
    """The results of an evaluation during training: benchmarks with their standard errors, or TRL's mean reward.

    None where `logs` has none.
    """
    cells = []
    for name, value in logs.items():
        if isinstance(error := logs.get(f"{name}_se"), int | float):
            cells.append(f"{name} {value:.3f} ±{error:.3f}")
        elif name == "eval_reward":
            cells.append(f"{name} {value:.3f}")
    return "  ".join([_count(step, total), *cells]) if cells else None


def read_progress_line(text: str) -> Line | None:
    """The numbers of such a line under their names in the log; None for any other text."""
    match = _LINE.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        return None
    found: Line = {"step": int(match[1])}
    for word, number in _CELL.findall(match[3]):
        if word not in _SHOWN and not word.startswith("eval"):
            return None
        if number != "-":
            found[_SHOWN.get(word, word)] = float(number)
    if match[4] not in (None, "-"):
        found[SECONDS.name] = float(match[4])
    return found


def _count(step: int, total: int) -> str:
    return f"{step:>{len(str(total))}}/{total}"


def _number(value: Any, column: Column) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    # 99.95 would become 100.0 with one decimal
    small = known and column.below_100 is not None and abs(value) < 99.95
    form = column.below_100 if small else column.form
    return f"{format(value, form or '') if known else '-':>{column.width}}"
