"""The contract of a correction, and the mismatch π_old/μ that all of them read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.fields import Checked
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


def log_mismatch(tokens: TokenBatch) -> Tensor:
    """[B, T] log π_old/μ of the token; 0 where masked."""
    return torch.where(tokens.mask, tokens.old_logprob - sampler_logprob(tokens), 0.0)


def mismatch(tokens: TokenBatch, level: str) -> Tensor:
    """π_old/μ of the token, or of the whole response (the product over its valid tokens); log clamped to ±20."""
    log = log_mismatch(tokens)
    if level == "sequence":
        log = log.sum(-1, keepdim=True).expand_as(log)
    # after the sum: a product over thousands of tokens overflows, one token hardly does
    return log.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sampler_logprob(tokens: TokenBatch) -> Tensor:
    """[B, T] log μ. Raises ValueError if the batch has none."""
    if tokens.rollout_logprob is None:
        raise ValueError("a correction needs the sampler's log-probs: pass rollout_logprob [B, T], got None")
    return tokens.rollout_logprob
