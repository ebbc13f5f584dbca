"""The hard clip with any bounds: base of GRPO, DAC, BAPO, M2PO, GSPO and Clip-Cov."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from dgpo.objectives.objective import Boundaries, Objective
from dgpo.tokens import TokenBatch


@dataclass(frozen=True, kw_only=True)
class HardClip(Objective):
    """The gradient of a token stops at its bound. With x the log ratio and [low, high] the range of `clip_range`::

    left         A < 0, x < low               w = 0         φ = exp(low)
    right        A > 0, x > high              w = 0         φ = exp(high)
    dual clip    A < 0, x > log dual_clip     w = 0         φ = dual_clip
    else                                      w = exp(x)    φ = exp(x)
    """

    @property
    def dual_clip(self) -> float | None:
        """The ratio beyond which a token with A < 0 is dropped; a field of the methods that have one."""
        return None

    @abstractmethod
    def clip_range(self, tokens: TokenBatch) -> Boundaries:
        """The log ratio that is clipped, and its bounds without a dual clip."""

    def boundaries(self, tokens: TokenBatch) -> Boundaries:
        return self.clip_range(tokens).capped(tokens.advantage < 0, self.dual_clip)

    def _clipped(self, tokens: TokenBatch) -> tuple[Tensor, Tensor]:
        """x [B, T], and the nearest log ratio that the clip allows."""
        x, low, high = self.clip_range(tokens)
        negative = torch.maximum(x, low).clamp(max=math.inf if self.dual_clip is None else math.log(self.dual_clip))
        positive = torch.minimum(x, high)
        return x, torch.where(tokens.advantage < 0, negative, torch.where(tokens.advantage > 0, positive, x))

    def weight(self, tokens: TokenBatch) -> Tensor:
        x, allowed = self._clipped(tokens)
        # clamping returns x itself where it does not act: the comparison is exact
        return torch.where(allowed == x, x.exp(), 0.0)

    def potential(self, tokens: TokenBatch) -> Tensor:
        return self._clipped(tokens)[1].exp()
