"""Corrections that leave out tokens or responses where sampler and trainer differ too much: ρ = 0 there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgpo.correction.contract import Correction, Level, log_mismatch, mismatch, sampler_logprob
from dgpo.fields import choice, number
from dgpo.numerics import expm1_minus, log1m_exp
from dgpo.tokens import MAX_LOG_RATIO, TokenBatch


@dataclass(frozen=True, kw_only=True)
class Rejection(Correction, ABC):
    """ρ = 0 where `kept` is False, and elsewhere 1 or a truncated ratio, min(π_old/μ, cap).

    A rejected token still counts in the normaliser of the aggregation; verl and slime take it out of their mask.

    Args:
        ratio: "none" for 1, "token" for the token's ratio, "sequence" for the product over the response.
        cap: largest factor, as in `Truncate`.
    """

    ratio: Literal["none", "token", "sequence"] = choice("none", "none", "token", "sequence")
    cap: float = number(math.inf, "(0, inf]")

    @property
    def level(self) -> Level:
        return "token" if self.by_token and self.ratio != "sequence" else "sequence"

    @property
    def by_token(self) -> bool:
        """Whether a token is kept or rejected by its own log-probs alone."""
        return False

    @abstractmethod
    def kept(self, tokens: TokenBatch) -> Tensor:
        """[B, T] bool, or [B, 1] for whole responses."""

    def check(self, tokens: TokenBatch) -> None:
        sampler_logprob(tokens)

    def factor(self, tokens: TokenBatch) -> Tensor:
        kept = self.kept(tokens)
        if self.ratio == "none":
            found = torch.ones_like(tokens.old_logprob)
        else:
            found = mismatch(tokens, self.ratio).clamp(max=self.cap)
        return torch.where(kept, found, 0.0)


@dataclass(frozen=True, kw_only=True)
class Geometric(Rejection):
    """Responses whose geometric mean of π_old/μ over their T valid tokens lies outside a band are rejected::

        kept: band_low <= exp(mean of log π_old/μ) <= band_high

    Args:
        band_low: smallest mean that is kept; 0.99 in SkyRL.
        band_high: largest; 1.01 in SkyRL, and 0.999 to 1.002 in NeMo-RL's example.
        ratio: factor of the kept tokens: none in SkyRL and verl, the token's in NeMo-RL's `seq-mask-tis`.
        cap: as in `Rejection`.

    Source: SkyRL@a9564572 off_policy_correction_utils.py:220 ("geometric"); NeMo-RL@7ea279ab loss_functions.py:588;
    verl@1dda039b rollout_corr_helper.py ("seq_mean_k1").
    """

    band_low: float = number(0.99, "[0, inf)")
    band_high: float = number(1.01, "(band_low, inf]")

    def kept(self, tokens: TokenBatch) -> Tensor:
        log = log_mismatch(tokens).sum(-1, keepdim=True) / tokens.mask.sum(-1, keepdim=True).clamp(min=1)
        mean = log.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        return (mean >= self.band_low) & (mean <= self.band_high)


@dataclass(frozen=True, kw_only=True)
class Reject(Rejection):
    """Tokens or responses of which a divergence is above a threshold are rejected.

    With d = log π_old/μ of a token, clamped to ±20::

        k2 = d² / 2        k3 = exp(d) - 1 - d
        kept: k, or its sum, mean or largest value over the response, <= threshold

    verl calls these `token_k2`, `seq_sum_k2`, `seq_mean_k2`, `seq_max_k2`, and so on. The largest and the mean k3 are
    the two criteria of trust region masking (TRM). verl's `seq_mean_k1` bounds a ratio and is `geometric`; its bounds
    `low_high` keep the ratios from 1/high to 1/low, since it compares -log(π_old/μ) with their logarithms.

    Args:
        estimator: "k2" or "k3", in nats.
        over: "token" rejects tokens by themselves, the others whole responses.
        threshold: largest value that is kept; TRM has no default.
        ratio, cap: as in `Rejection`.

    Source: verl@1dda039b rollout_corr_helper.py, `compute_rollout_rejection_mask`; arXiv 2512.23075.
    """

    estimator: Literal["k2", "k3"] = choice("k3", "k2", "k3")
    over: Literal["token", "sum", "mean", "max"] = choice("max", "token", "sum", "mean", "max")
    threshold: float = number(0.01, "(0, inf]")

    @property
    def by_token(self) -> bool:
        return self.over == "token"

    def kept(self, tokens: TokenBatch) -> Tensor:
        d = log_mismatch(tokens).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        # 0 where masked, and never negative: masked tokens change neither a sum nor a maximum
        k = 0.5 * d.square() if self.estimator == "k2" else expm1_minus(d)
        if self.over in ("sum", "mean"):
            k = k.sum(-1, keepdim=True)
        if self.over == "mean":
            k = k / tokens.mask.sum(-1, keepdim=True).clamp(min=1)
        if self.over == "max":
            k = k.amax(-1, keepdim=True)
        return k <= self.threshold


@dataclass(frozen=True, kw_only=True)
class Veto(Rejection):
    """Responses with a single token whose π_old/μ lies outside a band are rejected.

    Args:
        band_low: smallest ratio of a token; SkyRL suggests 1e-4.
        band_high: largest; SkyRL suggests 100, slime has none.
        ratio, cap: as in `Rejection`.

    Source: SkyRL@a9564572 off_policy_correction_utils.py (`outlier_token_is_threshold_low`, `_high`); slime@624b824a
    examples/train_infer_mismatch_helper/mis.py:82 (`rs_veto_threshold`, its lower bound alone).
    """

    band_low: float = number(1e-4, "[0, inf)")
    band_high: float = number(math.inf, "(band_low, inf]")

    def kept(self, tokens: TokenBatch) -> Tensor:
        found = mismatch(tokens, "token")
        inside = (found >= self.band_low) & (found <= self.band_high)
        return (inside | ~tokens.mask).all(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class KPop(Rejection):
    """Tokens whose binary KL divergence between trainer and sampler is above a threshold, in either direction.

    With p = π_old and q = μ of the sampled token, both clamped to [1e-6, 1 - 1e-6], and all other tokens as one event::

        D(p, q) = p log(p/q) + (1 - p) log((1 - p)/(1 - q))
        kept: max(D(p, q), D(q, p)) <= threshold

    In terms of the ratio, the band is wide for rare tokens and narrow for likely ones.

    Args:
        threshold: in nats; 0.1 in the authors' report and in prime-rl's pull request.
        ratio: of the kept tokens; "token" as in IcePop, which this replaces.
        cap: as in `Rejection`.

    Source: Guo et al., "KPop", https://ringtech.notion.site/kpop; the pull requests prime-rl #3283, verl #6800 and
    AReaL #1405, whose texts give the formula and the clamp. None of their code was run here.
    """

    ratio: Literal["none", "token", "sequence"] = choice("token", "none", "token", "sequence")
    threshold: float = number(0.1, "(0, inf]")

    @property
    def by_token(self) -> bool:
        return True

    def kept(self, tokens: TokenBatch) -> Tensor:
        low, high = math.log(_CLAMP), math.log1p(-_CLAMP)
        p, q = (x.clamp(low, high) for x in (tokens.old_logprob, sampler_logprob(tokens)))
        ratio, rest = p - q, log1m_exp(p) - log1m_exp(q)
        forward = p.exp() * ratio - torch.expm1(p) * rest
        backward = -(q.exp() * ratio - torch.expm1(q) * rest)
        return torch.maximum(forward, backward) <= self.threshold


_CLAMP = 1e-6
"""Of probabilities, as in the pull requests: 1 - p is never 0."""
