"""Writing the tokens of an update to a file, so that a run can be analysed without running it again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from dgpo.aggregation import StepTotals
from dgpo.fields import check_value
from dgpo.files import write_bytes_atomic
from dgpo.runs.schema import FLOATS, INTEGERS, TOKENS_SCHEMA, token_file
from dgpo.runs.tokens import NUMBERS, Part, pyarrow
from dgpo.tokens import TokenBatch


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
    anchor: str = "old",
) -> Path:
    """Write the tokens of one update into the run folder `path`, atomically; from any training loop.

    Args:
        path: the run folder.
        tokens: what the loss read, [B, T].
        update: number of the optimiser update, >= 0; an existing file of this update is replaced.
        token_ids: [B, T] the sampled tokens, so that reports can show them.
        group: [B] integers, equal for responses to the same prompt; by default every response is a group.
        sum_pi_squared: [B, T] Σ_v π_θ(v)², which makes the norm of a token's gradient in logits exact.
        generation: number of the batch of completions.
        index: number of the update within that batch, from 0 (on-policy); None if unknown.
        totals: totals of the optimiser step, from which its loss can be recomputed.
        rank, world_size: of this process; every process records its part.
        anchor: the policy that the ratio was taken against, "old" or "rollout" (see `policy_loss`).

    Returns:
        The file.

    Raises:
        ValueError: if a shape does not match, a number is negative, or the anchor is unknown or has no log-probs.
        ModuleNotFoundError: if pyarrow is not installed.
        OSError: if the file cannot be written.
    """
    tokens.anchored(anchor)  # raises for an anchor that these tokens do not have
    table = TokenTable()
    table.add(tokens, token_ids=token_ids, group=group, sum_pi_squared=sum_pi_squared)
    return table.write(Path(path), Part(update, generation, totals, index, rank, world_size, anchor))


class TokenTable:
    """The rows of one token file, collected micro-batch by micro-batch."""

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
        # off the device at once: the micro-batches of a whole update are collected
        self._parts.append(_off_the_device(part))
        self._responses += shape[0]

    def write(self, folder: Path, part: Part) -> Path:
        """Write the rows as the file of this part of a run."""
        pa, parquet = pyarrow()
        for name in ("update", "generation", "rank"):
            check_value(name, getattr(part, name), "[0, inf)")
        columns, length = {}, sum(len(rows) for added in self._parts if (rows := added["response"]) is not None)
        for name in (*INTEGERS, *FLOATS):
            kind = pa.int32() if name in INTEGERS else pa.float32()
            parts = [added[name] for added in self._parts]
            # a column of nulls, unless every micro-batch has the values
            if any(values is None for values in parts):
                columns[name] = pa.nulls(length, kind)
                continue
            values = torch.cat([values for values in parts if values is not None])
            if name == "group":
                # renumbered from 0: a caller's numbers need not fit into int32
                values = torch.unique(values, return_inverse=True)[1]
            columns[name] = pa.array(values.to(torch.int32 if name in INTEGERS else torch.float32).numpy(), kind)
        totals = part.totals
        about = {
            "schema": TOKENS_SCHEMA,
            **{name: getattr(part, name) for name in NUMBERS},
            "anchor": part.anchor,
            "totals": None if totals is None else {k: float(getattr(totals, k)) for k in ("tokens", "sequences")},
        }
        table = pa.table(columns).replace_schema_metadata({"dgpo": json.dumps(about)})
        content = pa.BufferOutputStream()
        parquet.write_table(table, content, compression="zstd")
        return write_bytes_atomic(token_file(folder, part.update, part.rank), memoryview(content.getvalue()))


def _off_the_device(part: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The columns on the host: a copy of the integers and one of the others, since each waits for the device."""
    found = dict(part)
    for names, kind in ((INTEGERS, torch.int64), (FLOATS, torch.float32)):
        present = [name for name in names if part.get(name) is not None]
        columns = [values.to(kind) for name in present if (values := part[name]) is not None]
        if columns:
            found |= dict(zip(present, torch.stack(columns).cpu().unbind(), strict=True))
    return found
