"""Recording: the tokens of an update as a file, so that questions about a run can be answered without running it again.

A run folder holds `run.json` (what ran), `metrics.jsonl` (one log line per line, and events) and, for every recorded
update, `tokens/update-000012.parquet` with one row per valid response token:

| column | type | |
|---|---|---|
| `response` | int32 | response within the file |
| `group` | int32 | prompt within the file |
| `position` | int32 | column of the token within its response |
| `token_id` | int32, null where unknown | |
| `logprob`, `old_logprob` | float32 | log π_θ, log π_old in nats |
| `advantage` | float32 | A |
| `rollout_logprob`, `entropy`, `sum_pi_squared` | float32, null where unknown | log μ, H in nats, Σ_v π(v)² |

The key `dgpo` of the file's metadata is JSON: `schema`, `update`, `generation`, `index` (of the
update within its generation), `rank`, `world_size`, `totals`.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.files import one_line, parse_json, write_bytes_atomic
from dgpo.installation import require
from dgpo.tokens import TokenBatch

SCHEMA = "dgpo.tokens/1"
RUN_SCHEMA = "dgpo.run/1"
TOKENS, METRICS, INFO = "tokens", "metrics.jsonl", "run.json"
NAME = re.compile(r"update-([0-9]{1,15})(?:-rank([0-9]{1,9}))?\.parquet$")
FLOATS = ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy", "sum_pi_squared")
INTEGERS = ("response", "group", "position", "token_id")
ALWAYS_KNOWN = ("response", "group", "position", "logprob", "advantage")
"""Columns without a null."""

MOST_ROWS = (2_000_000, 1)
"""A file may hold so many rows, and so many more for each of its bytes: compression turns a run of equal values into
nothing, and a file of a kilobyte could ask for all of the memory."""


def record(
    path: str | os.PathLike[str],
    tokens: TokenBatch,
    *,
    update: int,
    token_ids: Tensor | None = None,
    group: Tensor | None = None,
    sum_pi_squared: Tensor | None = None,
    generation: int = 0,
    index: int | None = None,
    totals: StepTotals | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Path:
    """Write the tokens of one update into the run folder `path`, atomically; from any training loop.

    Args:
        path: the run folder.
        tokens: what the loss read, [B, T].
        update: number of the optimiser update, >= 0; a file of the same update is replaced.
        token_ids: [B, T] the sampled tokens, so that reports can show them.
        group: [B] integers, equal for responses to the same prompt; by default every response is its own.
        sum_pi_squared: [B, T] Σ_v π_θ(v)², which makes the norm of a token's gradient in logits exact.
        generation: number of the batch of completions that the update belongs to.
        index: of the update within that batch, from 0, which is on-policy; None where it is not known.
        totals: of the optimiser step, so that its loss can be computed again.
        rank, world_size: of this process, where each records its own part.

    Returns:
        The file.

    Raises:
        ValueError: a shape that does not fit, or a negative number.
        ModuleNotFoundError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    table = TokenTable()
    table.add(tokens, token_ids=token_ids, group=group, sum_pi_squared=sum_pi_squared)
    return table.write(
        Path(path),
        update=update,
        generation=generation,
        index=index,
        totals=totals,
        rank=rank,
        world_size=world_size,
    )


class TokenTable:
    """Rows of one file, micro-batch by micro-batch."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor | None]] = []
        self._responses = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(
        self,
        tokens: TokenBatch,
        *,
        token_ids: Tensor | None = None,
        group: Tensor | None = None,
        sum_pi_squared: Tensor | None = None,
    ) -> None:
        shape = tuple(tokens.mask.shape)
        for name, values, expected in (
            ("token_ids", token_ids, shape),
            ("group", group, shape[:1]),
            ("sum_pi_squared", sum_pi_squared, shape),
        ):
            if values is not None and tuple(values.shape) != expected:
                raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {expected}")
        row, column = tokens.mask.nonzero(as_tuple=True)
        numbers = torch.arange(self._responses, self._responses + shape[0], device=row.device)
        part: dict[str, Tensor | None] = {
            "response": numbers[row],
            "group": (numbers if group is None else group.to(row.device))[row],
            "position": column,
            "token_id": None if token_ids is None else token_ids[row, column],
            "sum_pi_squared": None if sum_pi_squared is None else sum_pi_squared[row, column],
        }
        for name in ("logprob", "old_logprob", "advantage", "rollout_logprob", "entropy"):
            values = getattr(tokens, name)
            part[name] = None if values is None else values.detach()[row, column]
        self._parts.append({name: None if values is None else values.cpu() for name, values in part.items()})
        self._responses += shape[0]

    def write(
        self,
        folder: Path,
        *,
        update: int,
        generation: int,
        index: int | None,
        totals: StepTotals | None,
        rank: int,
        world_size: int,
    ) -> Path:
        pa, parquet = pyarrow()
        for name, number in (("update", update), ("generation", generation), ("rank", rank)):
            if number < 0:
                raise ValueError(f"{name} = {number} is not allowed; expected >= 0")
        columns, length = {}, sum(len(rows) for part in self._parts if (rows := part["response"]) is not None)
        for name in (*INTEGERS, *FLOATS):
            kind = pa.int32() if name in INTEGERS else pa.float32()
            parts = [part[name] for part in self._parts]
            if any(values is None for values in parts):
                columns[name] = pa.nulls(length, kind)
                continue
            values = torch.cat([values for values in parts if values is not None])
            if name == "group":
                values = torch.unique(values, return_inverse=True)[1]
            columns[name] = pa.array(values.to(torch.int32 if name in INTEGERS else torch.float32).numpy(), kind)
        about = {
            "schema": SCHEMA,
            "update": update,
            "generation": generation,
            "index": index,
            "rank": rank,
            "world_size": world_size,
            "totals": None if totals is None else {k: float(getattr(totals, k)) for k in ("tokens", "sequences")},
        }
        table = pa.table(columns).replace_schema_metadata({"dgpo": json.dumps(about)})
        suffix = f"-rank{rank}" if rank else ""
        path = folder / TOKENS / f"update-{update:06d}{suffix}.parquet"
        content = pa.BufferOutputStream()
        parquet.write_table(table, content, compression="zstd")
        return write_bytes_atomic(path, memoryview(content.getvalue()))


def pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, or an error that says how to get them."""
    require("recorded tokens are parquet files, which need", "report", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    return pa, parquet


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a file of tokens says of itself; see `record`. `rows`: how many tokens it holds."""

    rows: int
    update: int
    generation: int
    index: int | None
    rank: int
    world_size: int
    totals: StepTotals | None


def footer(path: str | os.PathLike[str]) -> Footer:
    """The footer of a file of tokens, checked; the tokens are not read.

    Raises:
        ValueError: it is no such file, or damaged; names the file and what is wrong with it.
        ModuleNotFoundError: pyarrow is not installed.
    """
    pa, parquet = pyarrow()
    where = repr(str(path))
    try:
        found = parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:  # arrow reports what it cannot decode as either
        raise ValueError(f"{where} is not a parquet file: {one_line(error)}") from error
    try:
        about = parse_json(((found.metadata or {}).get(b"dgpo") or b"{}").decode())
    except ValueError as error:
        raise ValueError(f"{where} has metadata that are not JSON: {error}") from error
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        schema = about.get("schema") if isinstance(about, dict) else None
        raise ValueError(f"{where} has schema {schema!r}; expected {SCHEMA!r}")
    names = ("update", "generation", "index", "rank", "world_size")
    numbers: dict[str, Any] = {name: about.get(name) for name in names}
    for name, value in numbers.items():
        fits = isinstance(value, int) and not isinstance(value, bool) and int(name == "world_size") <= value < 2**31
        if not fits and not (name == "index" and value is None):
            raise ValueError(f"{where} says {name} = {value!r}; expected an integer >= {int(name == 'world_size')}")
    footer = Footer(rows=int(found.num_rows), totals=_totals(about.get("totals"), where), **numbers)
    if footer.rank >= footer.world_size:
        raise ValueError(f"{where} says rank = {footer.rank} of world_size = {footer.world_size}")
    named = NAME.fullmatch(Path(path).name)
    if named and (int(named[1]), int(named[2] or 0)) != (footer.update, footer.rank):
        raise ValueError(f"{where} says update = {footer.update}, rank = {footer.rank}; its name says otherwise")
    size = Path(path).stat().st_size
    if footer.rows > MOST_ROWS[0] + MOST_ROWS[1] * size:
        raise ValueError(f"{where} claims {footer.rows:,} tokens in {size:,} bytes")
    return footer


def _totals(given: Any, where: str) -> StepTotals | None:
    if given is None:
        return None
    names = ("tokens", "sequences")
    values = [given.get(name) for name in names] if isinstance(given, dict) else []
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(names) or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"{where} says totals = {given!r}; expected tokens and sequences, each a number >= 0")
    return StepTotals(tokens=numbers[0], sequences=numbers[1])


def generation_of(path: Path) -> int:
    """The generation that a file of tokens belongs to; -1 where its footer cannot be read."""
    try:
        return footer(path).generation
    except ValueError:
        return -1
