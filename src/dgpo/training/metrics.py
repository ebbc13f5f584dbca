"""Metrics of one optimiser step, over all its micro-batches and ranks, in one read from the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepMetrics:
    """Collects the metrics of micro-batches and reduces them once per optimiser step.

    Means are weighted by valid tokens, so they do not depend on micro-batches or ranks (the shares `mass/` and
    `weight/ess` are such means of per-micro-batch values). A name that ends in `/max` gives the largest of all.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor], count: Tensor) -> None:
        """The metrics of one micro-batch: name -> 0-d tensor, and how many valid tokens they stand for."""
        self._names = list(values)
        self._rows.append(torch.stack([count, *(value.to(count.dtype) for value in values.values())]))

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The metrics of everything added since the last call, on all ranks; every rank must call it."""
        rows = accelerator.gather(torch.stack(self._rows)).cpu().double()
        self._rows.clear()
        share = rows[:, :1] / rows[:, :1].sum().clamp(min=1)
        means, largest = (rows[:, 1:] * share).sum(0).tolist(), rows[:, 1:].amax(0).tolist()
        return {name: (largest if name.endswith("/max") else means)[column] for column, name in enumerate(self._names)}
