"""Batches of tokens for checking an objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dgpo.objectives import Objective
from dgpo.tokens import TokenBatch

HALF = math.log(0.5)
"""log π_old in the properties with a fixed π_old."""
RARE = -20.1
"""log π_old of a token whose ratio can go from e^-20 to e^20 with π <= 1."""


@dataclass(frozen=True)
class Batch:
    """The arguments of one loss: ragged, with holes in the mask, both signs of A, rare tokens and one row of A = 0."""

    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    mask: Tensor
    rollout_logprob: Tensor
    ref_logprob: Tensor
    entropy: Tensor

    def tokens(self) -> TokenBatch:
        """As an objective sees them."""
        return TokenBatch(
            self.logprob,
            self.old_logprob,
            self.advantage,
            self.mask,
            rollout_logprob=self.rollout_logprob,
            entropy=self.entropy,
        )

    def but(self, **changed: Any) -> Batch:
        """With other values of some fields."""
        return replace(self, **changed)


def random_batch(
    B: int = 5, T: int = 7, *, spread: float = 0.7, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    """B responses of up to T tokens, whose log ratios have this standard deviation."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(B, T, generator=generator, dtype=torch.float64)

    def normal() -> Tensor:
        return torch.randn(B, T, generator=generator, dtype=torch.float64)

    old = uniform(-4.0, -0.05)
    # rare tokens
    old[:, 1] -= 8.0
    advantage = torch.randn(B, generator=generator, dtype=torch.float64)
    # in every batch a response of A = 0 and both signs of A
    advantage[B // 2] = 0.0
    advantage[0], advantage[-1] = -1.1, 0.9
    lengths = torch.randint(2, T + 1, (B,), generator=generator)
    # a response as long as the batch, a short one, and a hole in the mask
    lengths[0], lengths[-1] = T, 2
    mask = torch.arange(T) < lengths.unsqueeze(1)
    mask[0, T // 2] = False
    return Batch(
        # π_θ stays below 1
        logprob=(old + spread * normal()).clamp(max=-1e-3).to(dtype),
        old_logprob=old.to(dtype),
        advantage=advantage.to(dtype),
        mask=mask,
        rollout_logprob=(old + 0.4 * normal()).to(dtype),
        ref_logprob=(old + 0.3 * normal()).to(dtype),
        entropy=uniform(0.1, 2.0).to(dtype),
    )


def column(x: Tensor, sign: float | Tensor, old: float | Tensor = HALF) -> TokenBatch:
    """One response of one token for each log ratio in x [N], so that sequence-level methods see the same ratios."""
    old_logprob = torch.zeros_like(x) + old
    advantage = torch.zeros_like(x) + sign
    return TokenBatch(
        (old_logprob + x).unsqueeze(1),
        old_logprob.unsqueeze(1),
        advantage,
        torch.ones(len(x), 1, dtype=torch.bool),
        entropy=torch.ones_like(x).unsqueeze(1),
    )


def linspace(low: float, high: float, number: int) -> Tensor:
    """In float64."""
    return torch.linspace(low, high, number, dtype=torch.float64)


def calibrated(objective: Objective) -> Objective:
    """The objective as the loss would use it; an adaptive one is calibrated once, and fixed from then on."""
    x = linspace(-1, 1, 20)
    return objective.calibrate(column(x, torch.sign(x)))


@dataclass(frozen=True)
class Parts:
    """A batch split into what a weight may read of a token, named as in `Read`, so that one can be changed alone."""

    ratio: Tensor
    advantage_sign: Tensor
    advantage_size: Tensor
    old_logprob: Tensor
    entropy: Tensor
    mask: Tensor

    @classmethod
    def random(cls, seed: int) -> Parts:
        """Multiples of 1/1024, whose sums are exact, so that the log ratio is the same at every π_old."""
        generator = torch.Generator().manual_seed(seed)

        def dyadic(low: float, high: float) -> Tensor:
            drawn = torch.rand(6, 8, generator=generator, dtype=torch.float64)
            return (drawn * (high - low) + low).mul(1024).round() / 1024

        return cls(
            ratio=dyadic(-1.5, 1.5),
            advantage_sign=dyadic(-1, 1).sign(),
            advantage_size=dyadic(0.25, 3),
            old_logprob=dyadic(-4, -0.125),
            entropy=dyadic(0, 3),
            mask=torch.rand(6, 8, generator=generator) < 0.8,
        )

    def tokens(self) -> TokenBatch:
        """As an objective sees them."""
        old, advantage = self.old_logprob, self.advantage_sign * self.advantage_size
        return TokenBatch(old + self.ratio, old, advantage, self.mask, entropy=self.entropy)

    def but(self, other: Parts, where: Tensor) -> Parts:
        """With all values of the other batch where the mask is True."""
        names = [field.name for field in fields(self)]
        return Parts(**{name: torch.where(where, getattr(other, name), getattr(self, name)) for name in names})
