"""Sums and values over all ranks, for methods that read the batch. Every rank has to call these equally often."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, in place; `values` itself where torch.distributed is not initialised."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(values: Tensor) -> Tensor:
    """The values [n] of all ranks, one after another; `values` itself where torch.distributed is not initialised.

    Ranks may have different n, of which the largest is read on the host.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return values
    ranks = dist.get_world_size()
    counts = torch.zeros(ranks, dtype=torch.long, device=values.device)
    counts[dist.get_rank()] = len(values)
    lengths = summed(counts).tolist()
    # a collective needs the same shape on every rank
    padded = values.new_zeros(max(lengths))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
