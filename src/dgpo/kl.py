"""Estimators of KL(π_θ ‖ π_ref) from sampled tokens (Schulman, "Approximating KL divergence", 2020).

All take [B, T] log-probs in nats of tokens sampled from the first argument and return [B, T]. k2 and k3 see the log
ratio clamped to ±`MAX_LOG_RATIO`, with the gradient through the clamp kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgpo.numerics import expm1_minus
from dgpo.tokens import MAX_LOG_RATIO


def k1(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """logprob - ref_logprob: unbiased, signed. Its gradient has expectation 0, so it is a metric and never a loss."""
    return logprob - ref_logprob


def k2(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """(logprob - ref_logprob)² / 2: biased value; on-policy its gradient is that of the KL."""
    return 0.5 * _bounded(logprob - ref_logprob).square()


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logprob - logprob: unbiased and >= 0; its gradient is not that of the KL."""
    return expm1_minus(_bounded(ref_logprob - logprob))


def k3_ratio(logprob: Tensor, ref_logprob: Tensor, old_logprob: Tensor) -> Tensor:
    """r · k3 with r = exp(logprob - old_logprob), both factors differentiated (TRL's `use_bias_correction_kl`)."""
    return _bounded(logprob - old_logprob).exp() * k3(logprob, ref_logprob)


def k3_sequence_ratio(logprob: Tensor, ref_logprob: Tensor, old_logprob: Tensor, mask: Tensor) -> Tensor:
    """s · k3 with s = exp(mean over the response of logprob - old_logprob), both factors differentiated.

    TRL's `use_bias_correction_kl` at `importance_sampling_level="sequence"`. Its gradient is not that of the KL.
    """
    log_ratio = torch.where(mask, logprob - old_logprob, 0.0).sum(-1, keepdim=True)
    return _bounded(log_ratio / mask.sum(-1, keepdim=True).clamp(min=1)).exp() * k3(logprob, ref_logprob)


def _bounded(d: Tensor) -> Tensor:
    return d + (d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) - d).detach()
