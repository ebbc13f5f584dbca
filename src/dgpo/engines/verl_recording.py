"""Recording from verl: the tokens of every micro-batch, as files that `dgpo replay` and `dgpo report` read."""

from __future__ import annotations

import logging
from functools import cache

import torch.distributed as dist

from dgpo.runs.recorder import Recorder
from dgpo.tokens import TokenBatch

logger = logging.getLogger(__name__)

LIMIT = 2**30
"""Maximum bytes of the files of all ranks, as `record_limit_mb` of the TRL trainer is by default."""


def record(folder: str, tokens: TokenBatch) -> None:
    """Write the inputs of a loss as the next file of this rank.

    A loss in verl gets a micro-batch without its number, token ids or prompts: `update` counts micro-batches, and those
    columns are empty. ρ arrives as a factor, so log μ is not known.
    """
    series = _series(folder)
    series.count += 1
    if series.recorder.wants(series.count):
        series.recorder.add(tokens)
        series.recorder.finish(series.count)


class _Series:
    """The files of one process; in a resumed run their numbering continues."""

    def __init__(self, folder: str) -> None:
        ready = dist.is_available() and dist.is_initialized()
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)
        self.recorder = Recorder(folder, limit=LIMIT / ranks, rank=rank, world_size=ranks, warn=logger.warning)
        self.count = self.recorder.last


_series = cache(_Series)
