"""Reading a run folder: what `recording.py` wrote."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.diagnostics.recording import FLOATS, INFO, INTEGERS, METRICS, NAME, SCHEMA, TOKENS, pyarrow
from dgpo.tokens import TokenBatch


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
        ValueError: it is no such file.
        ModuleNotFoundError: pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{str(path)!r} is not a parquet file: {error}") from error
    about = json.loads((table.schema.metadata or {}).get(b"dgpo", b"{}"))
    if about.get("schema") != SCHEMA:
        raise ValueError(f"{str(path)!r} has schema {about.get('schema')!r}; expected {SCHEMA!r}")
    columns = {name: _column(table, name) for name in (*INTEGERS, *FLOATS)}
    response, position = columns["response"], columns["position"]
    assert response is not None
    assert position is not None
    # responses without a valid token leave no row behind
    rows = torch.unique(response, return_inverse=True)[1]
    shape = (int(rows.max()) + 1, int(position.max()) + 1) if len(rows) else (0, 0)

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
        update=about["update"],
        generation=about["generation"],
        index=about.get("index"),
        totals=None if about["totals"] is None else StepTotals(**about["totals"]),
        rank=about["rank"],
        world_size=about["world_size"],
    )


def _column(table: Any, name: str) -> Tensor | None:
    values = table.column(name)
    if values.null_count == len(values) and len(values):
        return None
    return torch.tensor(values.to_numpy(), dtype=torch.long if name in INTEGERS else torch.float32)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        info: `run.json`; empty where there is none.
        metrics: the lines of `metrics.jsonl`, in order; of a step that stands there twice, because a run was resumed
            from a checkpoint before it, only the last. Events have a key `event`.
        damaged: names of the files of tokens that could not be read so far.
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
                    if path.name not in self.damaged:
                        self.damaged.append(path.name)
                        warnings.warn(f"left out: {error}", stacklevel=2)
                    continue
                yield found


def load(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        ValueError: it is no folder or holds nothing that was recorded; or a file in it is damaged.
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
    try:
        about = json.loads(info.read_text(encoding="utf-8")) if info.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(info)!r} is not valid JSON: {error}") from error
    return Run(folder=folder, info=_in_numbers(about), metrics=read_metrics(metrics) if metrics.is_file() else [])


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order, the last of those with the same step; a line that was cut off as the
    last one, because the writer was killed, is left out.

    Raises:
        ValueError: another line is no JSON object; names it.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{str(path)!r}, line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number} holds a {type(row).__name__}; expected an object")
        if row.get("event") == "begin":  # what came after the checkpoint that this continues from did not happen
            rows = [old for old in rows if "event" in old or old.get("step", 0) <= row.get("step", 0)]
        rows.append(_in_numbers(row))
    return rows


def _in_numbers(value: Any) -> Any:
    """The words that stand for NaN and infinities as floats again, at any depth."""
    if isinstance(value, dict):
        return {name: _in_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_in_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
