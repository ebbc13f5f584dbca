"""Reading a run folder: what `recording.py` wrote."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.files import one_line, parse_json, read_json, read_text
from dgpo.runs.recording import ALWAYS_KNOWN, FLOATS, INFO, INTEGERS, METRICS, NAME, TOKENS, footer, pyarrow
from dgpo.runs.run_info import checked
from dgpo.tokens import TokenBatch

MOST_CELLS = (2**22, 256)
"""The rectangle that the tokens of a file are padded to may have so many places, and so many more for each token: one
token at position 2³⁰ is no reason to ask for gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The tokens of one update, on one rank.

    Attributes:
        tokens: [B, T] as the loss saw them, padded on the right. Responses with advantage 0, which a trainer leaves
            out of the pass through the policy, are not there.
        token_ids: [B, T] int64, or None.
        group: [B] int64, which responses share a prompt.
        sum_pi_squared: [B, T] Σ_v π_θ(v)², or None.
        update: the optimiser update, from 1.
        generation: the batch of completions that it belongs to, from 0.
        index: of the update within it, from 0, which is on-policy; None where it is not known.
        totals: of the whole optimiser step, as the loss was given them; or None.
        rank, world_size: of the process that recorded it; each has its own part of the update.
    """

    tokens: TokenBatch
    token_ids: Tensor | None
    group: Tensor
    sum_pi_squared: Tensor | None
    update: int
    generation: int
    totals: StepTotals | None
    index: int | None = None
    rank: int = 0
    world_size: int = 1


def read(path: str | os.PathLike[str]) -> Recorded:
    """The tokens of one file that `record` wrote.

    Raises:
        ValueError: it is no such file, or damaged; names the file and what is wrong with it.
        ModuleNotFoundError: pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    about = footer(path)
    try:
        # read as one file: by its path alone, pyarrow takes names of folders such as update=5 for columns
        table = parquet.ParquetFile(path).read()
        columns = {name: _column(table, name, pa) for name in (*INTEGERS, *FLOATS)}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {one_line(error)}") from error
    response, position = columns["response"], columns["position"]
    assert response is not None
    assert position is not None
    # responses without a valid token leave no row behind
    rows = torch.unique(response, return_inverse=True)[1]
    shape = (int(rows.max()) + 1, int(position.max()) + 1) if len(rows) else (0, 0)
    if shape[0] * shape[1] > MOST_CELLS[0] + MOST_CELLS[1] * len(rows):
        raise ValueError(
            f"{str(path)!r} has {len(rows):,} tokens in {shape[0]:,} responses, one at position {shape[1] - 1:,}"
        )
    if len(torch.unique(rows * shape[1] + position)) < len(rows):
        raise ValueError(f"{str(path)!r} has two tokens at one position of a response")

    def padded(name: str) -> Tensor | None:
        values = columns[name]
        if values is None:
            return None
        whole = values.new_zeros(shape)
        whole[rows, position] = values
        return whole

    mask = torch.zeros(shape, dtype=torch.bool)
    mask[rows, position] = True
    logprob, old_logprob, advantage = padded("logprob"), padded("old_logprob"), padded("advantage")
    assert logprob is not None
    assert advantage is not None
    group, prompts = torch.zeros(shape[0], dtype=torch.long), columns["group"]
    assert prompts is not None
    group[rows] = prompts
    return Recorded(
        tokens=TokenBatch(
            logprob,
            old_logprob,
            advantage,
            mask,
            rollout_logprob=padded("rollout_logprob"),
            entropy=padded("entropy"),
        ),
        token_ids=padded("token_id"),
        group=group,
        sum_pi_squared=padded("sum_pi_squared"),
        update=about.update,
        generation=about.generation,
        index=about.index,
        totals=about.totals,
        rank=about.rank,
        world_size=about.world_size,
    )


def _column(table: Any, name: str, pa: Any) -> Tensor | None:
    """Raises ValueError for a column that is not there once, or holds what it must not."""
    if (there := table.column_names.count(name)) != 1:
        raise ValueError(f"it has {there} columns {name!r}; expected one")
    values, whole = table.column(name), name in INTEGERS
    kind = pa.int32() if whole else pa.float32()
    if values.type != kind:
        raise ValueError(f"its column {name!r} is {values.type}; expected {kind}")
    if len(values) and values.null_count == len(values) and name not in ALWAYS_KNOWN:
        return None
    if values.null_count:
        raise ValueError(f"its column {name!r} is null in {values.null_count} of {len(values)} rows")
    found = torch.tensor(values.to_numpy(), dtype=torch.long if whole else torch.float32)
    if whole and len(found) and int(found.min()) < 0:
        raise ValueError(f"its column {name!r} has {int(found.min())}; expected integers >= 0")
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        info: `run.json`; empty where there is none. An entry that `run_info.KINDS` does not allow is left out.
        metrics: the lines of `metrics.jsonl`, in order; of a step that stands there twice, because a run was resumed
            from a checkpoint before it, only the last. Events have a key `event`.
        damaged: names of the files, or of their parts, that could not be read so far.
    """

    folder: Path
    info: dict[str, Any]
    metrics: list[dict[str, Any]]
    damaged: list[str] = field(default_factory=list)

    @cached_property
    def files(self) -> dict[int, list[Path]]:
        """Update -> its files, one per rank that recorded, in order; as they were when first asked for."""
        found: dict[int, list[tuple[int, Path]]] = {}
        for path in (self.folder / TOKENS).glob("update-*.parquet"):
            if match := NAME.fullmatch(path.name):
                found.setdefault(int(match[1]), []).append((int(match[2] or 0), path))
        return {update: [path for _, path in sorted(ranks)] for update, ranks in sorted(found.items())}

    @property
    def updates(self) -> list[int]:
        """The recorded updates, in order."""
        return list(self.files)

    def tokens(self, update: int, rank: int = 0) -> Recorded:
        """What one rank recorded of an update.

        Raises:
            KeyError: nothing was recorded of it.
        """
        for path in self.files.get(update, []):
            match = NAME.fullmatch(path.name)
            if match and int(match[2] or 0) == rank:
                return read(path)
        raise KeyError(f"no tokens of update {update} of rank {rank} in {self.folder}; recorded: {self.updates}")

    def recorded(self, updates: Iterable[int] | None = None) -> Iterator[Recorded]:
        """The recorded updates one by one, all ranks of each one after the other.

        A file that cannot be read is left out, with a warning that names it, and stands in `damaged` from then on.
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
    """Note, and say once, that a file or a part of one is not read."""
    if name not in damaged:
        damaged.append(name)
        warnings.warn(f"left out: {why}", stacklevel=3)


def load(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    What is damaged is left out, with a warning that names it, and stands in `Run.damaged`: `run.json` or entries of it,
    lines of `metrics.jsonl`, files of tokens as they are read.

    Raises:
        ValueError: it is no folder or holds nothing that was recorded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; expected one that a run was recorded to")
    info, metrics = folder / INFO, folder / METRICS
    if not (info.is_file() or metrics.is_file() or (folder / TOKENS).is_dir()):
        raise ValueError(
            f"{str(folder)!r} holds none of {INFO}, {METRICS}, {TOKENS}/: nothing was recorded there "
            "(DGPOConfig(record=FOLDER), or dgpo.diagnostics.record)"
            + (f"; did you mean {str(folder / 'record')!r}?" if (folder / "record").is_dir() else "")
        )
    damaged: list[str] = []
    about = _read_info(info, damaged) if info.exists() else {}
    rows: list[dict[str, Any]] = []
    if metrics.exists():
        try:
            rows = read_metrics(metrics, leave_out=lambda number, why: _leave_out(damaged, f"{METRICS}:{number}", why))
        except (ValueError, OSError) as error:
            _leave_out(damaged, METRICS, str(error))
    return Run(folder=folder, info=about, metrics=rows, damaged=damaged)


def _read_info(path: Path, damaged: list[str]) -> dict[str, Any]:
    try:
        found = _in_numbers(read_json(path))
    except (ValueError, OSError) as error:
        _leave_out(damaged, INFO, str(error))
        return checked(None)[0]
    info, complaints = checked(found)
    for complaint in complaints:
        _leave_out(damaged, f"{INFO}: {complaint.partition(' ')[0]}", f"{str(path)!r}: {complaint}")
    return info


def read_metrics(
    path: str | os.PathLike[str], *, leave_out: Callable[[int, str], None] | None = None
) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order, the last of those with the same step; a line that was cut off as the
    last one, because the writer was killed, is left out.

    Args:
        path: the file.
        leave_out: called with the number of a line that is no JSON object or has no step, and with what is wrong; the
            line is left out then. Without it that is an error.

    Raises:
        ValueError: the file is not UTF-8; such a line, which is named, without `leave_out`.
        OSError: the file cannot be read.
    """
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = _row(line)
        except ValueError as error:
            if number == len(lines) and not line.rstrip().endswith("}"):
                break
            if leave_out is None:
                raise ValueError(f"{str(path)!r}, line {number} {error}") from error
            leave_out(number, f"{str(path)!r}, line {number} {error}")
            continue
        if row.get("event") == "begin":  # what came after the checkpoint that this continues from did not happen
            rows = [old for old in rows if "event" in old or step_of(old) <= step_of(row)]
        rows.append(row)
    return rows


def _row(line: str) -> dict[str, Any]:
    try:
        row = _in_numbers(parse_json(line))
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"holds a {type(row).__name__}; expected an object")
    try:
        step_of(row)
    except ValueError as error:
        raise ValueError(f"has {error}") from error
    return row


def step_of(row: Mapping[str, Any]) -> int:
    """The optimiser step of a log line: `step`, or `_step` as W&B writes it.

    Raises:
        ValueError: it is no integer; says what it is.
    """
    step = row.get("step", row.get("_step"))
    number = isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step)
    if not number or step != int(step) or abs(step) >= 2**53:
        raise ValueError(f"step = {step!r}; expected an integer under 'step'")
    return int(step)


def _in_numbers(value: Any) -> Any:
    """The words that stand for NaN and infinities as floats again, at any depth."""
    if isinstance(value, dict):
        return {name: _in_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
