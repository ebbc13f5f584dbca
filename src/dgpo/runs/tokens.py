"""Reading token files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dgpo.aggregation import StepTotals
from dgpo.counts import counted
from dgpo.files import one_line, parse_json
from dgpo.installation import require
from dgpo.runs.schema import FLOATS, INTEGERS, NEVER_NULL, TOKENS_SCHEMA, named
from dgpo.tokens import ANCHORS, TokenBatch

MOST_ROWS = (2_000_000, 1)
"""Limit on the rows of a file: a constant, plus a number per byte. Equal values compress to almost nothing, so that a
file of one kilobyte could otherwise expand to fill the memory."""

MOST_CELLS = (2**22, 256)
"""Limit on the rectangle that the tokens of a file are padded to: a number of cells, plus a number per token. A single
token at position 2³⁰ must not allocate gigabytes."""


NUMBERS = ("update", "generation", "index", "rank", "world_size")
"""Fields of `Part` that a file has as integers."""


@dataclass(frozen=True)
class Part:
    """Which part of a run a token file contains.

    Attributes:
        update: the optimiser update, from 1.
        generation: the batch of completions that it belongs to, from 0.
        totals: of the whole optimiser step, as the loss was given them; or None.
        index: of the update within its generation, from 0, which is on-policy; None where it is not known.
        rank, world_size: of the process that recorded it; each has its own part of the update.
        anchor: the policy that the ratio was taken against, "old" or "rollout".
    """

    update: int
    generation: int
    totals: StepTotals | None
    index: int | None = None
    rank: int = 0
    world_size: int = 1
    anchor: str = "old"


@dataclass(frozen=True, kw_only=True)
class Footer(Part):
    """The metadata of a token file. `rows`: its number of tokens."""

    rows: int


@dataclass(frozen=True, kw_only=True)
class Recorded(Part):
    """The tokens of one update, on one rank.

    Attributes:
        tokens: [B, T] as the loss saw them, padded on the right. Responses with advantage 0, which the
            trainer does not pass through the policy, are missing.
        token_ids: [B, T] int64, or None.
        group: [B] int64, which responses share a prompt.
        sum_pi_squared: [B, T] Σ_v π_θ(v)², or None.
        update, generation, totals, index, rank, world_size, anchor: as in `Part`.
    """

    tokens: TokenBatch
    token_ids: Tensor | None
    group: Tensor
    sum_pi_squared: Tensor | None

    @property
    def weighed(self) -> TokenBatch:
        """The tokens as the weights read them: `old_logprob` is the policy that the ratio was taken against."""
        return self.tokens.anchored(self.anchor)


@cache
def pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, or an error that says how to install them."""
    require("recorded tokens are parquet files, which need", "report", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    return pa, parquet


def footer(path: str | os.PathLike[str]) -> Footer:
    """Read and check the footer of a token file, without its tokens.

    Raises:
        ValueError: if it is not a token file, or damaged; names the file and the fault.
        ModuleNotFoundError: if pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    where = repr(str(path))
    try:
        metadata = parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:  # arrow reports what it cannot decode as either
        raise ValueError(f"{where} is not a parquet file: {one_line(error)}") from error
    try:
        about = parse_json(((metadata.metadata or {}).get(b"dgpo") or b"{}").decode())
    except ValueError as error:
        raise ValueError(f"{where} has metadata that are not JSON: {error}") from error
    if not isinstance(about, dict) or about.get("schema") != TOKENS_SCHEMA:
        schema = about.get("schema") if isinstance(about, dict) else None
        raise ValueError(f"{where} has schema {schema!r}; expected {TOKENS_SCHEMA!r}")
    numbers: dict[str, Any] = {name: about.get(name) for name in NUMBERS}
    for name, value in numbers.items():
        fits = isinstance(value, int) and not isinstance(value, bool) and int(name == "world_size") <= value < 2**31
        if not fits and not (name == "index" and value is None):
            raise ValueError(f"{where} says {name} = {value!r}; expected an integer >= {int(name == 'world_size')}")
    anchor = about.get("anchor", "old")  # files of earlier versions have none
    if anchor not in ANCHORS:
        raise ValueError(f"{where} says anchor = {anchor!r}; expected one of {', '.join(ANCHORS)}")
    totals = _totals(about.get("totals"), where)
    found = Footer(rows=int(metadata.num_rows), totals=totals, anchor=anchor, **numbers)
    if found.rank >= found.world_size:
        raise ValueError(f"{where} says rank = {found.rank} of world_size = {found.world_size}")
    file = named(Path(path))
    if file is not None and (file.update, file.rank) != (found.update, found.rank):
        raise ValueError(f"{where} says update = {found.update}, rank = {found.rank}; its name says otherwise")
    size = Path(path).stat().st_size
    if found.rows > MOST_ROWS[0] + MOST_ROWS[1] * size:
        raise ValueError(f"{where} claims {counted(found.rows, 'token')} in {counted(size, 'byte')}")
    return found


def _totals(given: Any, where: str) -> StepTotals | None:
    if given is None:
        return None
    names = ("tokens", "sequences")
    values = [given.get(name) for name in names] if isinstance(given, dict) else []
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(names) or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"{where} says totals = {given!r}; expected tokens and sequences, each a number >= 0")
    return StepTotals(tokens=numbers[0], sequences=numbers[1])


def read(path: str | os.PathLike[str]) -> Recorded:
    """Read a token file that `record` wrote.

    Raises:
        ValueError: if it is not a token file, or damaged; names the file and the fault.
        ModuleNotFoundError: if pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    about = footer(path)
    try:
        # ParquetFile, not read_table: that would turn folder names such as update=5 into columns
        table = parquet.ParquetFile(path).read()
        columns: dict[str, Any] = {name: _column(table, name, pa) for name in (*INTEGERS, *FLOATS)}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {one_line(error)}") from error
    response, position = columns["response"], columns["position"]
    # responses without a valid token leave no row behind
    rows = torch.unique(response, return_inverse=True)[1]
    shape = (int(rows.max()) + 1, int(position.max()) + 1) if len(rows) else (0, 0)
    if shape[0] * shape[1] > MOST_CELLS[0] + MOST_CELLS[1] * len(rows):
        raise ValueError(
            f"{str(path)!r} has {counted(len(rows), 'token')} in {counted(shape[0], 'response')}, one at "
            f"position {shape[1] - 1:,}"
        )
    # one number for each cell of the rectangle
    if len(torch.unique(rows * shape[1] + position)) < len(rows):
        raise ValueError(f"{str(path)!r} has two tokens at one position of a response")

    def padded(name: str) -> Any:
        """[B, T], or None for a column of nulls."""
        if (values := columns[name]) is None:
            return None
        whole = values.new_zeros(shape)
        whole[rows, position] = values
        return whole

    mask = torch.zeros(shape, dtype=torch.bool)
    mask[rows, position] = True
    if about.anchor == "rollout" and columns["rollout_logprob"] is None and len(rows):
        raise ValueError(f"{str(path)!r} says anchor = 'rollout', but its column 'rollout_logprob' is null")
    group = torch.zeros(shape[0], dtype=torch.long)
    group[rows] = columns["group"]
    return Recorded(
        tokens=TokenBatch(
            padded("logprob"),
            padded("old_logprob"),
            padded("advantage"),
            mask,
            rollout_logprob=padded("rollout_logprob"),
            entropy=padded("entropy"),
        ),
        token_ids=padded("token_id"),
        group=group,
        sum_pi_squared=padded("sum_pi_squared"),
        **{field.name: getattr(about, field.name) for field in fields(Part)},
    )


def _column(table: Any, name: str, pa: Any) -> Tensor | None:
    """One column; None if all of it is null. Raises ValueError if it is missing, duplicate or malformed."""
    if (there := table.column_names.count(name)) != 1:
        raise ValueError(f"it has {counted(there, 'column')} {name!r}; expected one")
    values, whole = table.column(name), name in INTEGERS
    kind = pa.int32() if whole else pa.float32()
    if values.type != kind:
        raise ValueError(f"its column {name!r} is {values.type}; expected {kind}")
    if len(values) and values.null_count == len(values) and name not in NEVER_NULL:
        return None
    if values.null_count:
        raise ValueError(f"its column {name!r} is null in {values.null_count} of {len(values)} rows")
    found = torch.tensor(values.to_numpy(), dtype=torch.long if whole else torch.float32)
    if whole and len(found) and int(found.min()) < 0:
        raise ValueError(f"its column {name!r} has {int(found.min())}; expected integers >= 0")
    return found


def complete(parts: Sequence[Part]) -> bool:
    """Whether these are the parts of an update on all its ranks."""
    size = max((part.world_size for part in parts), default=1)
    return len({part.rank for part in parts}) == size


def whole(parts: Sequence[Recorded]) -> tuple[TokenBatch, Tensor | None, float]:
    """Join the parts of an update, one per rank, into one batch.

    Returns:
        The tokens [B, T] as the weights read them (`Recorded.weighed`); Σ_v π_θ(v)² [B, T], or None if a part has
        none; the number of tokens of the optimiser step (the sum of the totals of the ranks, or else of the valid
        recorded tokens).
    """
    length = max(part.tokens.mask.shape[1] for part in parts)

    def joined(values: Sequence[Tensor | None]) -> Any:
        """The values below each other, or None if a part has none."""
        present = [pad(one, (0, length - one.shape[1])) for one in values if one is not None]
        return torch.cat(present) if len(present) == len(values) else None

    names = ("logprob", "old_logprob", "advantage", "mask", "rollout_logprob", "entropy")
    # [B, T] of every rank, padded to the longest, below each other
    tokens = TokenBatch(**{name: joined([getattr(part.tokens, name) for part in parts]) for name in names})
    given = [float(part.tokens.mask.sum()) if part.totals is None else float(part.totals.tokens) for part in parts]
    return tokens.anchored(parts[0].anchor), joined([part.sum_pi_squared for part in parts]), sum(given)
