"""The weight of an objective over a grid of ratios, for figures, tables and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.objectives.objective import Boundaries, Objective
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class WeightCurve:
    """Result of `weight_curve`.

    Attributes:
        tokens: N responses of one token each, at the log ratios of the grid.
        weight: [N] w.
        boundaries: [N, 1] of the objective, for `regions` and for lines at `low` and `high`.
    """

    tokens: TokenBatch
    weight: Tensor
    boundaries: Boundaries

    @property
    def possible(self) -> Tensor:
        """[N] bool: where π_θ is a probability."""
        return self.tokens.logprob[:, 0] <= 1e-9  # slightly above 0 is rounding


@torch.no_grad()
def weight_curve(
    objective: Objective, log_ratio: Tensor | Sequence[float], *, advantage: float, old_logprob: float
) -> WeightCurve:
    """w and the boundaries of an objective at each log ratio, for one token in a response of its own, in float64.

    So the ratio of the response, which a sequence-level method compares, is that of its token. An adaptive method has
    the bounds that its fields give; pass a calibrated one for those of a batch, as a grid of ratios is not a batch to
    calibrate on.

    Args:
        objective: any.
        log_ratio: [N] log π_θ - log π_old, in nats.
        advantage: A.
        old_logprob: log π_old, for methods that read it.
    """
    x = torch.as_tensor(log_ratio, dtype=torch.float64).unsqueeze(1)
    old, one = torch.full_like(x, old_logprob), torch.ones_like(x)
    # the response's only entropy is its largest, so that its value does not matter
    tokens = TokenBatch(old + x, old, advantage * one, one.bool(), rollout_logprob=old, entropy=one)
    return WeightCurve(tokens=tokens, weight=objective.weight(tokens)[:, 0], boundaries=objective.boundaries(tokens))
