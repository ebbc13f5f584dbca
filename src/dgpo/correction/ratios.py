"""Corrections whose factor is the mismatch itself, bounded; and a factor computed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.checks import check_tensor
from dgpo.correction.contract import Correction, Level, mismatch, sampler_logprob
from dgpo.fields import choice, number
from dgpo.tokens import TokenBatch


@dataclass(frozen=True)
class Truncate(Correction):
    """Truncated importance sampling: ρ = min(π_old/μ, cap).

    Args:
        level: "token" uses the token's ratio, "sequence" the product over the response.
        cap: largest factor; 2 in verl and slime.

    Source: verl verl/trainer/ppo/rollout_corr_helper.py:522 @1dda039b.
    """

    # a field, in the place of the property of the base class
    level: Literal["token", "sequence"] = choice("token", "token", "sequence")
    cap: float = number(2.0, "(0, inf]")

    def check(self, tokens: TokenBatch) -> None:
        sampler_logprob(tokens)

    def factor(self, tokens: TokenBatch) -> Tensor:
        return mismatch(tokens, self.level).clamp(max=self.cap)


@dataclass(frozen=True)
class Band(Correction):
    """IcePop-like masking: ρ = π_old/μ inside [band_low, band_high], 0 outside.

    Args:
        band_low: smallest factor that is kept.
        band_high: largest factor that is kept.
        level: as in `Truncate`.
    """

    band_low: float = number(0.5, "[0, inf)")
    band_high: float = number(2.0, "(band_low, inf]")
    level: Literal["token", "sequence"] = choice("token", "token", "sequence")

    def check(self, tokens: TokenBatch) -> None:
        sampler_logprob(tokens)

    def factor(self, tokens: TokenBatch) -> Tensor:
        found = mismatch(tokens, self.level)
        # 0, not the nearest bound: a token or response outside the band is left out
        return torch.where((found >= self.band_low) & (found <= self.band_high), found, 0.0)


# eq=False: compared by identity, as == of tensors is a tensor and no truth value
@dataclass(frozen=True, kw_only=True, eq=False)
class Given(Correction):
    """A factor computed elsewhere: [B, T], or [B, 1] for one value per response.

    Raises:
        TypeError, ValueError: from `check`, if values is not such a floating tensor on the batch's device.
    """

    values: Tensor

    @property
    def level(self) -> Level:
        return "none"

    def check(self, tokens: TokenBatch) -> None:
        check_tensor("correction.values", self.values, "floating", ("logprob", tokens.mask.device))
        B, T = tokens.mask.shape
        if self.values.shape not in ((B, T), (B, 1)):
            raise ValueError(
                f"correction.values has shape {tuple(self.values.shape)}; expected [B, T] = [{B}, {T}] or "
                f"[B, 1] = [{B}, 1]"
            )

    def factor(self, tokens: TokenBatch) -> Tensor:
        self.check(tokens)
        values = self.values.detach().to(tokens.dtype).expand(tokens.mask.shape)
        return torch.where(tokens.mask, values, 0.0)
