"""Metrics of one optimiser step, over all its micro-batches and ranks, in one read from the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class StepMetrics:
    """Collects the metrics of micro-batches and reduces them once per optimiser step.

    Means are weighted by the tokens they stand for, so they do not depend on micro-batches or ranks (the shares `mass/`
    and `weight/ess` are such means of per-micro-batch values). A name that ends in `/max` gives the largest of all.
    """

    def __init__(self) -> None:
        self._names: list[list[str]] = []
        self._rows: list[Tensor] = []

    def add(self, *parts: tuple[Mapping[str, Tensor], Tensor]) -> None:
        """The metrics of one micro-batch, in parts: name -> 0-d tensor, and how many valid tokens they stand for.

        All micro-batches of a step have the same parts with the same names.
        """
        self._names = [list(values) for values, _ in parts]
        self._rows.append(
            torch.stack([v.to(count.dtype) for values, count in parts for v in (count, *values.values())])
        )

    def reduce(self, accelerator: Any) -> dict[str, float]:
        """The metrics of everything added since the last call, on all ranks; every rank must call it.

        NaN for a part that stands for no token at all: TRL leaves NaN out of the mean that it logs, where a 0 would
        pass for a measurement.
        """
        rows = accelerator.gather(torch.stack(self._rows)).cpu().double()
        self._rows.clear()
        found: dict[str, float] = {}
        for names, part in zip(self._names, rows.split([1 + len(names) for names in self._names], 1), strict=True):
            count = part[:, :1].sum()
            share = part[:, :1] / torch.where(count > 0, count, torch.nan)
            means = (part[:, 1:] * share).sum(0).tolist()
            largest = torch.where(count > 0, part[:, 1:].amax(0), torch.nan).tolist()
            found |= {n: (largest if n.endswith("/max") else means)[column] for column, n in enumerate(names)}
        return found
