"""Correction ρ: a factor for a sampler μ that differs from the policy as the trainer computes it.

μ (an inference engine) and π_old (the trainer's own forward pass of the same weights) differ by kernels, precision and
staleness. ρ = π_old / μ, bounded, multiplies the policy term. It is a factor of its own, never part of an objective's
w: w measures how far the policy has moved since sampling, ρ how wrong the sampler was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dgpo.checks import check_tensor
from dgpo.fields import Checked, choice, number
from dgpo.registry import build
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch

Level = Literal["none", "token", "sequence", "batch"]


# eq=False: `Given` would inherit an equality that compares no field
@dataclass(frozen=True, eq=False)
class Correction(Checked, ABC):
    """Base of all corrections."""

    @property
    def level(self) -> Level:
        """Which log-probs the ρ of a token depends on: none, its own, those of its response, or (default) any."""
        return "batch"

    @abstractmethod
    def factor(self, tokens: TokenBatch) -> Tensor:
        """ρ [B, T] >= 0, detached."""

    def check(self, tokens: TokenBatch) -> None:
        """Raise ValueError or TypeError if `factor` cannot be computed for such a batch; log-probs are not read."""
        return


def _mismatch(tokens: TokenBatch, level: str) -> Tensor:
    """π_old/μ of the token, or of the whole response (the product over its valid tokens); log clamped to ±20."""
    log_mismatch = torch.where(tokens.mask, tokens.old_logprob - _sampler_logprob(tokens), 0.0)
    if level == "sequence":
        log_mismatch = log_mismatch.sum(-1, keepdim=True).expand_as(log_mismatch)
    # after the sum: a product over thousands of tokens overflows, one token hardly does
    return log_mismatch.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _sampler_logprob(tokens: TokenBatch) -> Tensor:
    if tokens.rollout_logprob is None:
        raise ValueError("a correction needs the sampler's log-probs: pass rollout_logprob [B, T], got None")
    return tokens.rollout_logprob


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
        _sampler_logprob(tokens)

    def factor(self, tokens: TokenBatch) -> Tensor:
        return _mismatch(tokens, self.level).clamp(max=self.cap)


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
        _sampler_logprob(tokens)

    def factor(self, tokens: TokenBatch) -> Tensor:
        mismatch = _mismatch(tokens, self.level)
        # 0, not the nearest bound: a token or response outside the band is left out
        return torch.where((mismatch >= self.band_low) & (mismatch <= self.band_high), mismatch, 0.0)


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


CORRECTIONS: dict[str, type[Correction]] = {"truncate": Truncate, "band": Band}


def make(name: str | Mapping[str, Any], **fields: Any) -> Correction:
    """Build a correction by name, for example `make("truncate", level="sequence", cap=2.0)`.

    Args:
        name: as accepted by `dgpo.registry.parse`, with or without fields.
        fields: further fields.

    Raises:
        ValueError: an unknown name or field, with the nearest known one; or a field outside its range.
    """
    return build("correction", CORRECTIONS, name, fields)
